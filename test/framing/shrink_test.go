package framing_test

import (
	"bytes"
	"slices"
	"time"
)

// shrink looks for a smaller trial that fails still: whole pieces go first,
// then lines, then bytes. It gives up in time.
func shrink(tr trial, fails func(trial) bool) trial {
	limit := time.Now().Add(time.Minute)
	for _, simpler := range []trial{{tr.arrival, tr.pieces, 0, tr.leaves}, {tr.arrival, tr.pieces, 0, false}, {tr.arrival, tr.pieces, tr.write, false}} {
		if fails(simpler) {
			tr = simpler
			break
		}
	}
	tr.pieces = fewer(tr.pieces, func(p [][]byte) bool { return fails(with(tr, p)) }, limit)
	for _, split := range []func([]byte) [][]byte{
		func(b []byte) [][]byte { return slices.Collect(bytes.Lines(b)) },
		func(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, 1)) },
	} {
		tr.pieces = fewer(split(tr.bytes()), func(p [][]byte) bool { return fails(with(tr, p)) }, limit)
	}
	return tr
}

func with(tr trial, pieces [][]byte) trial {
	tr.pieces = pieces
	return tr
}

// fewer removes runs of pieces, long ones first, as long as what is left fails.
func fewer(pieces [][]byte, fails func([][]byte) bool, limit time.Time) [][]byte {
	for run := max(1, len(pieces)/2); ; run /= 2 {
		for at := 0; at+run <= len(pieces); {
			if time.Now().After(limit) {
				return pieces
			}
			if less := slices.Delete(slices.Clone(pieces), at, at+run); fails(less) {
				pieces = less
			} else {
				at += run
			}
		}
		if run <= 1 {
			return pieces
		}
	}
}
