package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/keys"
	"github.com/postern-proxy/postern/agent/store"
)

// revoked is what became of one key.
type revoked struct {
	keys.Revoked
	Seconds float64 `json:"seconds"` // from the command to the record's being written
	scope   string
}

func (c *common) revoke(cmd *cobra.Command, name string, f revokeFlags) error {
	began := time.Now()
	s, err := c.keys(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	if f.proxyID != "" {
		s = s.in(keys.Scope{Environment: s.Scope.Environment, ProxyID: f.proxyID})
	}
	o := keys.RevokeOptions{Versions: f.versions, All: f.all, Reason: f.reason}
	switch {
	case f.leaked:
		return c.revokeLeaked(cmd, s, f, o)
	case name == "":
		return c.revokeAll(cmd, s, o, began)
	}
	r, err := s.end(cmd, name, o, began)
	if err != nil {
		return err
	}
	return c.print(cmd, r, func(w io.Writer) { s.sayRevoked(w, r) })
}

// end revokes versions of one key. What was interrupted before is not looked at
// until that is done.
func (s *keyStore) end(cmd *cobra.Command, name string, o keys.RevokeOptions, began time.Time) (revoked, error) {
	r, err := s.Revoke(cmd.Context(), name, o)
	took := time.Since(began)
	warn(cmd, r.Warnings)
	if err != nil {
		return revoked{}, err
	}
	s.catchUp(cmd, name)
	return s.ended(r, took), nil
}

func (s *keyStore) ended(r keys.Revoked, took time.Duration) revoked {
	return revoked{Revoked: r, Seconds: float64(took.Milliseconds()) / 1000, scope: s.scope()}
}

// revokeAll ends every key of a proxy id. One that cannot be ended leaves the others.
func (c *common) revokeAll(cmd *cobra.Command, s *keyStore, o keys.RevokeOptions, began time.Time) error {
	done, failed := s.RevokeScope(cmd.Context(), o.Reason)
	took := time.Since(began)
	all := []revoked{}
	for _, r := range done {
		warn(cmd, r.Warnings)
		all = append(all, s.ended(r, took))
	}
	if len(all) == 0 && failed == nil {
		return fmt.Errorf("there are no keys in %s", s.scope())
	}
	if err := c.printRevoked(cmd, s, all); err != nil {
		return err
	}
	return failed
}

// revokeLeaked ends every version that holds the value given.
func (c *common) revokeLeaked(cmd *cobra.Command, s *keyStore, f revokeFlags, o keys.RevokeOptions) error {
	found, err := s.identify(cmd, "postern keys revoke --leaked --now", f.file)
	if err != nil {
		return err
	}
	began := time.Now() // what was read before is not the command's time
	all, failed := []revoked{}, error(nil)
	for _, v := range holders(found) {
		note(cmd, "this is %s", held(v))
		if !f.all {
			o.Versions = []int{v.Version}
		}
		its := s.in(keys.Scope{Environment: v.Environment, ProxyID: v.ProxyID})
		r, err := its.end(cmd, v.Name, o, began)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		all = append(all, r)
	}
	if err := c.printRevoked(cmd, s, all); err != nil {
		return err
	}
	return failed
}

func (c *common) printRevoked(cmd *cobra.Command, s *keyStore, all []revoked) error {
	return c.print(cmd, all, func(w io.Writer) {
		for _, r := range all {
			s.sayRevoked(w, r)
		}
	})
}

// sayRevoked says what ended, how fast, and what is left.
func (s *keyStore) sayRevoked(w io.Writer, r revoked) {
	which := "version"
	if len(r.Versions) != 1 {
		which = "versions"
	}
	fmt.Fprintf(w, "%s: %s %s revoked in %s after %.1f s; agents let go within %v\n", r.Name, which, numbers(r.Versions), r.scope, r.Seconds, s.cfg.Poll())
	if len(r.Destroyed) > 0 {
		fmt.Fprintf(w, "  destroyed in the store: %s\n", numbers(r.Destroyed))
	}
	if len(r.AtProvider) > 0 {
		fmt.Fprintf(w, "  revoked at the provider: %s\n", numbers(r.AtProvider))
	}
	if r.Remaining == 0 {
		fmt.Fprintf(w, "  nothing usable remains: requests are refused with 503 until `postern keys add %s` stores a new key\n", r.Name)
		return
	}
	fmt.Fprintf(w, "  usable still: %s\n", count(r.Remaining, "other version", "other versions"))
}

// numbers are version numbers as a list.
func numbers(ns []int) string {
	var words []string
	for _, n := range ns {
		words = append(words, strconv.Itoa(n))
	}
	return orDash(strings.Join(words, ", "))
}

// identify finds out which key a value is that is given on standard input.
func (s *keyStore) identify(cmd *cobra.Command, usage, file string) (keys.Found, error) {
	value, err := keyInput{prompt: "Leaked key", subject: "the leaked", usage: usage, file: file}.read(cmd)
	if err != nil {
		return keys.Found{}, err
	}
	defer value.Destroy()
	found, err := s.Identify(cmd.Context(), value)
	if errors.Is(err, store.ErrNotFound) {
		return found, fmt.Errorf("this value is no key that postern stored in %s. If it is somebody's, replace it at its provider", s.place())
	}
	return found, err
}

// holders are the versions that hold a value.
func holders(f keys.Found) []keys.Found { return append([]keys.Found{f}, f.Others...) }

// held is a version in words.
func held(f keys.Found) string {
	return fmt.Sprintf("version %d of %s in %s, %s", f.Version, f.Name, f.Environment, f.ProxyID)
}
