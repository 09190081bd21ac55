package config

import (
	"sort"
	"strings"
)

// nearest is the word of choices that word was probably meant to be, "" if none is near.
func nearest(word string, choices []string) string {
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	if len(word) > 64 {
		return ""
	}
	best, least := "", max(1, min(3, len(word)/3))+1
	for _, c := range choices {
		d := distance(fold(word), fold(c))
		if d < least && d < len(c) {
			best, least = c, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, c := range choices { // warning for warn, azure for azure-openai
		if strings.HasPrefix(fold(c), fold(word)) || len(c) >= 3 && strings.HasPrefix(fold(word), fold(c)) {
			return c
		}
	}
	return ""
}

// didYouMean is `; did you mean "x"?`, or nothing.
func didYouMean(word string, choices []string) string {
	if n := nearest(word, choices); n != "" {
		return `; did you mean "` + n + `"?`
	}
	return ""
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that make b of a.
func distance(a, b string) int {
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}

// sorted is the choices in alphabetical order, as "a, b, c".
func sorted(choices []string) string {
	s := append([]string(nil), choices...)
	sort.Strings(s)
	return strings.Join(s, ", ")
}
