// Package audit is the record of what was done to keys and with them: entries
// that hang on each other by hash, so that an edit, a deletion or a reordering
// shows, and a truncation or a rewriting shows against an anchor kept elsewhere.
//
// # Format
//
// One entry is one line of JSON, its members in this order, empty ones from
// actor to detail left out:
//
//	{"v":1,"seq":2,"time":"2026-01-02T15:04:05.000000Z","boot":"…","event":"version.promoted",
//	 "actor":"…","source":"…","environment":"prod","proxy_id":"px_acme_prod","key":"openai","version":7,
//	 "outcome":"ok","reason":"…","detail":{"k":"v"},"prev":"…","hash":"…"}
//
// The line is canonical: an entry has exactly one spelling, and [Verify] wants
// it byte for byte. Strings escape quote, backslash, control characters and the
// invisible characters that turn or break a line, and nothing else; the time is
// UTC with six decimals; detail's members are sorted.
//
// hash is the hex SHA-256 of "postern/audit/v1\x00" and the line without its
// hash member, so it covers prev. prev is the hash of the entry before; the
// first entry of a chain has [Genesis] of its boot id there, and seq 1.
//
// # Chains
//
// On standard output each process writes a chain of its own, named by its boot
// id, and a capture may hold many, interleaved. A file holds one chain through
// all boots: a new boot continues what it finds. Where a crash left a torn line,
// it stays where it is, and the next entry, [EventResumed], says how many bytes
// were found and their hash: Verify accepts exactly these bytes there.
//
// A [Record] lies in a store, one entry at each numbered place, and is one chain
// that any number of processes append to. What lies at a place and is no entry
// of the chain is stepped over: the next entry's prev is the hash of the last
// good one. The store adds what no hash can: who wrote a place, and when.
//
// # What an anchor adds
//
// Whoever may write the file can also recompute every hash after an edit, or cut
// off the end. Only a [Head] noted elsewhere (a metric, a ticket) shows that.
package audit
