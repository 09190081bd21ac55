package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-proxy/postern/agent/roles"
	"github.com/postern-proxy/postern/config"
)

func newPolicy(c *common) *cobra.Command {
	var o roles.Options
	var role string
	var with []string
	cmd := &cobra.Command{
		Use:   "policy --role ROLE",
		Short: "Print the Vault policy of a role",
		Long: `Print the Vault policy of a role, as HCL on standard output. Vault enforces it:
postern has no access control of its own. Roles are developer, team-lead, devops,
security, agent and server.

Mount, prefix, environment and proxy id are those of the configuration, if there is
one, where no flag says otherwise. Developers, team leads and agents are for the proxy
ids that are named; devops and security, without any, for all of the environment.

  postern policy --role team-lead --proxy-id px_acme_prod | vault policy write postern-acme-lead -
  postern policy --role agent --accessor auth_kubernetes_0a1b2c3d | vault policy write postern-agent -

The second is one policy for every namespace and ServiceAccount: each reads the keys of
the proxy id px_<namespace>_<serviceaccount>. ` + "`vault auth list`" + ` shows the accessor.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := notAKey(map[string]string{
				"--role": role, "--environment": o.Environment, "--proxy-id": strings.Join(o.ProxyIDs, " "), "--accessor": o.Accessor,
				"--with": strings.Join(with, " "), "--mount": o.Mount, "--prefix": o.Prefix,
			})
			if err != nil {
				return err
			}
			o.Role = roles.Role(role)
			for _, v := range with {
				o.With = append(o.With, roles.Verb(v))
			}
			if err := c.completePolicy(cmd, &o); err != nil {
				return err
			}
			text, err := roles.Policy(o)
			if err != nil {
				return policyError(err)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	names := make([]string, 0, len(roles.Roles()))
	for _, r := range roles.Roles() {
		names = append(names, string(r))
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", strings.Join(names, ", "))
	f.StringVar(&o.Environment, "environment", "", "whose keys the policy is for")
	f.StringArrayVar(&o.ProxyIDs, "proxy-id", nil, "the same, one proxy id; repeat it for more")
	f.StringVar(&o.Accessor, "accessor", "", "of the Kubernetes auth method, for --role agent: one policy for all ServiceAccounts")
	f.StringArrayVar(&with, "with", nil, "a further verb for a person's role, as in validate, which reads keys; repeat it for more")
	f.StringVar(&o.Mount, "mount", "", "of the KV v2 engine")
	f.StringVar(&o.Prefix, "prefix", "", "the folder in it")
	return cmd
}

// policyError names the flag that an error of roles.Policy is about.
func policyError(err error) error {
	text := err.Error()
	if strings.HasPrefix(text, "path ") { // no flag gives one
		return errors.New("the configuration's " + text)
	}
	if rest, ok := strings.CutPrefix(text, "proxy id"); ok {
		text = "proxy-id" + rest
	}
	return usageError{errors.New("--" + text)}
}

// completePolicy takes from the configuration what no flag says. Without a
// configuration there is nothing to take: the built-in default is a laptop's.
func (c *common) completePolicy(cmd *cobra.Command, o *roles.Options) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.BuiltIn() {
		return nil
	}
	if o.Environment == "" {
		o.Environment = cfg.Environment
	}
	bound := o.Role == roles.Developer || o.Role == roles.TeamLead || o.Role == roles.Agent
	if bound && len(o.ProxyIDs) == 0 && o.Accessor == "" && cfg.ProxyID != "" {
		o.ProxyIDs = []string{cfg.ProxyID}
	}
	if v := cfg.Store.Vault; v != nil {
		if o.Mount == "" {
			o.Mount = v.Mount
		}
		if o.Prefix == "" {
			o.Prefix = v.Prefix
		}
	} else {
		note(cmd, "the configuration's store is a sealed file, which knows no roles: the policy is for a Vault")
	}
	o.Paths = pathsElsewhere(cfg, o.Role)
	return nil
}

// pathsElsewhere are secrets that the configuration names by their own paths.
func pathsElsewhere(cfg *config.Config, role roles.Role) []string {
	var paths []string
	switch role {
	case roles.Agent:
		for _, p := range cfg.Providers {
			if p.VaultPath != "" {
				paths = append(paths, p.VaultPath)
			}
		}
	case roles.Server:
		for _, is := range cfg.Issuers {
			if is.Kind == config.KindVault {
				paths = append(paths, is.Path)
			}
		}
	}
	return paths
}
