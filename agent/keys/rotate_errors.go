package keys

import (
	"errors"
	"fmt"
	"time"

	"github.com/postern-proxy/postern/agent/rotation"
)

// ErrOpen is the reason why a rotation cannot begin: another one is under way. The error is an *OpenError.
var ErrOpen = errors.New("a rotation is under way")

// OpenError says whose rotation is under way.
type OpenError struct {
	Name   string // of the key
	Actor  string // who asked for it, "" if that is not known
	Since  time.Time
	Phase  rotation.Phase
	Closed bool // it was under way, and is over by now
}

func (e *OpenError) Error() string {
	begun := fmt.Sprintf("a rotation of %s was begun by %s at %s", e.Name, orSomebody(e.Actor), clock(e.Since))
	if e.Closed {
		return fmt.Sprintf("%s and is over (%s); `postern keys show %s` says more, then try again", begun, e.Phase, e.Name)
	}
	return fmt.Sprintf("%s and is under way (%s); `postern keys resume %s` goes on with it", begun, e.Phase, e.Name)
}

// Is makes it an ErrOpen.
func (e *OpenError) Is(target error) bool { return target == ErrOpen }

// openError describes the rotation that a record speaks of.
func openError(name string, r *rotation.Record) *OpenError {
	return &OpenError{Name: name, Actor: r.Actor, Since: r.RequestedAt, Phase: r.Phase, Closed: r.Closed}
}

// ErrRejected is the reason why a rotation ended at its validation. The error is a *RejectedError.
var ErrRejected = errors.New("the provider refuses the new version")

// RejectedError says what the provider said of a new version.
type RejectedError struct {
	Name    string
	Version int
	Meaning string // what the answer means
	Status  int    // 0 if it is not known
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("the provider refuses version %d of %s (%s); nothing that is served has changed", e.Version, e.Name, refusal(e.Meaning, e.Status))
}

// Is makes it an ErrRejected.
func (e *RejectedError) Is(target error) bool { return target == ErrRejected }

func refusal(meaning string, status int) string {
	if status == 0 {
		return meaning
	}
	return fmt.Sprintf("status %d: %s", status, meaning)
}

// clock is how a time stands in a sentence.
func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
