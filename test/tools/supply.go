package tools

import "testing"

var supply = GoBinary{Name: "supply", Module: "supply"}

// Supply is the path of the program that says what programs are made of; the
// test fails if there is none to be had.
func Supply(t testing.TB) string {
	t.Helper()
	path, err := supply.Build()
	if err != nil {
		t.Fatalf("no supply to test: %v", err)
	}
	return path
}
