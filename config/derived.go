package config

import "time"

// defaultMaxStale is store.vault.max_stale where it is not written, and how
// long keys of a sealed file serve when the file cannot be read.
const defaultMaxStale = 24 * time.Hour

// Poll is how often the store is asked for news of each key.
func (c *Config) Poll() time.Duration {
	switch {
	case c.Store.Vault != nil:
		return c.Store.Vault.Poll
	case c.Store.Sealed != nil:
		return c.Store.Sealed.Poll
	}
	return 0
}

// KeyName names the key that an entry carries: entries with the same name share one key.
func (p Provider) KeyName() string {
	if p.VaultPath != "" {
		return p.VaultPath + "#" + p.Field
	}
	return p.Key
}

// Forwards reports whether the entry owns CONNECT to its hosts.
func (p Provider) Forwards() bool { return p.Forward == nil || *p.Forward }

// MaxStale is how long a key serves from memory while its store is out of reach.
func (c *Config) MaxStale() time.Duration {
	if c.Store.Vault != nil {
		return c.Store.Vault.MaxStale
	}
	return defaultMaxStale
}

// builtIn is the Source of the built-in default.
const builtIn = "built-in default"

// BuiltIn reports whether no file was read: the configuration is the built-in default.
func (c *Config) BuiltIn() bool { return c.Source == builtIn }

// File is the absolute name of the file that Load read; "" where it read none.
func (c *Config) File() string { return c.file }
