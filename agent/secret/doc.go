// Package secret holds key bytes outside the Go heap.
//
// A Value is a handle on bytes in a small mmap arena which the garbage
// collector never copies, core dumps never contain, and Destroy wipes. A Value
// prints as [redacted] through every formatting, logging and encoding path of
// the standard library.
package secret
