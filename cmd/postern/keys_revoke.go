package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/config"
)

// revokeFlags are those of `keys revoke`.
type revokeFlags struct {
	reason, proxyID, file string
	versions              []int
	now, all, leaked      bool
}

func newKeysRevoke(c *common) *cobra.Command {
	var f revokeFlags
	cmd := &cobra.Command{
		Use:   "revoke [NAME] --now --reason TEXT",
		Short: "Emergency: end a key at once",
		Long: `End versions of a key at once, without ramp or grace: no agent attaches them after its
next look into the store, and their memory is wiped. Requests move to another usable
version if there is one, else they are refused with 503. The versions are destroyed in the
store, and revoked at the provider where 'postern server' has an issuer for it.

  postern keys revoke openai --now --reason "seen in a paste"      # the newest version
  postern keys revoke openai --all-versions --now --reason "…"
  postern keys revoke --proxy-id px_acme_prod --all-versions --now --reason "…"   # all its keys
  postern keys revoke --leaked --now --reason "…" < found.txt      # whichever key it is

To replace a key without a failed request, rotate it.`,
		Args: atMostOneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			if err := f.check(name); err != nil {
				return usageError{err}
			}
			if err := aReason(f.reason, true); err != nil {
				return err
			}
			return c.revoke(cmd, name, f)
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.now, "now", false, "yes, at once: requests may fail until another version is usable")
	fl.StringVar(&f.reason, "reason", "", "why; it is recorded")
	versionsFlag(cmd, &f.versions, "this version (may be repeated; default: the newest)")
	fl.BoolVar(&f.all, "all-versions", false, "every version")
	fl.StringVar(&f.proxyID, "proxy-id", "", "keys of this proxy id instead of the configuration's; without NAME every one of them")
	fl.BoolVar(&f.leaked, "leaked", false, "the key whose value is given on standard input, whichever it is")
	fl.StringVar(&f.file, "file", "", "read the leaked value from this file instead of standard input")
	c.outputFlag(cmd)
	return cmd
}

func (f *revokeFlags) check(name string) error {
	if f.proxyID != "" {
		if err := config.CheckProxyID(f.proxyID); err != nil {
			return fmt.Errorf("--proxy-id: %w", err)
		}
	}
	if err := checkVersions(f.versions); err != nil {
		return err
	}
	switch {
	case f.leaked && (name != "" || f.proxyID != "" || len(f.versions) > 0):
		return errors.New("--leaked finds out which version of which key it is; leave NAME, --proxy-id and --version out")
	case !f.leaked && f.file != "":
		return errors.New("--file holds the value that --leaked looks for; a NAME needs no value")
	case f.all && len(f.versions) > 0:
		return errors.New("--all-versions and --version: leave one out")
	case !f.leaked && name == "" && f.proxyID == "":
		return errors.New("keys revoke wants the NAME of a key, or --proxy-id PX --all-versions for all keys of one, or --leaked")
	case !f.leaked && name == "" && !f.all:
		return fmt.Errorf("--proxy-id %s without NAME is every key of it: say --all-versions if that is meant, or name one key", f.proxyID)
	case !f.now:
		which := name
		if which == "" {
			which = "NAME"
		}
		return fmt.Errorf(`this would end %s at once: agents let go of it within one look into the store, and requests are
refused with 503 unless another version is usable. Say --now if that is meant. To replace a key without a failed
request, use 'postern keys rotate %s'`, f.what(name), which)
	}
	return nil
}

// what is about to be revoked, in words.
func (f *revokeFlags) what(name string) string {
	switch {
	case f.leaked:
		return "the leaked key"
	case name == "":
		return "every key of " + f.proxyID
	case f.all:
		return "every version of " + name
	case len(f.versions) > 0:
		return fmt.Sprintf("version %s of %s", numbers(f.versions), name)
	}
	return "the newest version of " + name
}
