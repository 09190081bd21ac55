package vault

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// method is a way to come by a token: a login at path with body, or a token
// that somebody else obtained.
type method struct {
	setting string // where it is configured, for errors
	path    string // the API path of the login; "" where token is set
	// body makes a login's body from the files as they are now; the caller wipes it.
	body func() ([]byte, error)
	// blame names the setting that a refused login points to, from Vault's answer.
	blame func(status int, said string) string
	// token returns a token that is not obtained by a login.
	token func() (string, error)
	// file: the token comes from a file that changes.
	file bool
}

const kubernetesTokenFile = "/var/run/secrets/postern/token"

// method checks the ways to log in that are configured and returns the one.
func (c Config) method() (method, error) {
	var found []method
	var errs []error
	add := func(m method, err error) {
		found = append(found, m)
		errs = append(errs, err)
	}
	if a := c.Auth.Kubernetes; a != nil {
		add(jwtMethod("kubernetes", a.Mount, a.Role, orDefault(a.TokenFile, kubernetesTokenFile)))
	}
	if a := c.Auth.AppRole; a != nil {
		add(a.method())
	}
	if a := c.Auth.JWT; a != nil {
		add(jwtMethod("jwt", a.Mount, a.Role, a.TokenFile))
	}
	if a := c.Auth.Cert; a != nil {
		add(a.method())
	}
	if a := c.Auth.Token; a != nil {
		add(a.method())
	}
	if c.Token != nil {
		add(staticMethod(c.Token), nil)
	}
	if len(found) != 1 {
		return method{}, errors.New("store.vault.auth needs exactly one of kubernetes, approle, jwt, cert, token")
	}
	return found[0], errs[0]
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// loginPath is where a method mounted at mount logs in.
func loginPath(setting, mount, otherwise string) (string, error) {
	mount = strings.Trim(orDefault(mount, otherwise), "/")
	if err := checkPath(mount); err != nil {
		return "", fmt.Errorf("%s.mount: %w", setting, err)
	}
	return apiPath("auth", mount, "login"), nil
}

// required names the first setting that is empty.
func required(setting string, pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			return fmt.Errorf("%s.%s is required", setting, pairs[i])
		}
	}
	return nil
}

func jwtMethod(kind, mount, role, file string) (method, error) {
	setting := "store.vault.auth." + kind
	path, err := loginPath(setting, mount, kind)
	if err == nil {
		err = required(setting, "role", role, "token_file", file)
	}
	return method{
		setting: setting,
		path:    path,
		body: func() ([]byte, error) {
			jwt, err := readCredential(file)
			if err != nil {
				return nil, fmt.Errorf("%s.token_file: %w", setting, err)
			}
			defer clear(jwt)
			return loginBody(pair{"role", []byte(role)}, pair{"jwt", jwt}), nil
		},
		blame: func(status int, said string) string {
			switch {
			case strings.Contains(said, "role"):
				return fmt.Sprintf("%s.role %q is no role of this auth method", setting, role)
			case strings.Contains(said, "not authorized"):
				return fmt.Sprintf("%s.role %q is not for this ServiceAccount: see its bound names and namespaces", setting, role)
			case status == 403:
				return fmt.Sprintf("either %s.mount is no enabled auth method, or the token in %s.token_file is not accepted (expired, another audience)", setting, setting)
			}
			return fmt.Sprintf("the token in %s.token_file or %s.role %q is not accepted", setting, setting, role)
		},
	}, err
}

func (a *AppRoleAuth) method() (method, error) {
	const setting = "store.vault.auth.approle"
	path, err := loginPath(setting, a.Mount, "approle")
	if err == nil {
		err = required(setting, "role_id", a.RoleID, "secret_id_file", a.SecretIDFile)
	}
	return method{
		setting: setting,
		path:    path,
		body: func() ([]byte, error) {
			id, err := readCredential(a.SecretIDFile)
			if err != nil {
				return nil, fmt.Errorf("%s.secret_id_file: %w", setting, err)
			}
			defer clear(id)
			return loginBody(pair{"role_id", []byte(a.RoleID)}, pair{"secret_id", id}), nil
		},
		blame: func(status int, _ string) string {
			if status == 403 {
				return setting + ".mount is no enabled auth method, or the secret id may not be used from here"
			}
			return setting + ".role_id is unknown, or the secret id in " + setting + ".secret_id_file was used up, expired, or belongs to another role"
		},
	}, err
}

func (a *CertAuth) method() (method, error) {
	const setting = "store.vault.auth.cert"
	path, err := loginPath(setting, a.Mount, "cert")
	if err == nil {
		err = required(setting, "cert_file", a.CertFile, "key_file", a.KeyFile)
	}
	return method{
		setting: setting,
		path:    path,
		body: func() ([]byte, error) {
			if a.Role == "" { // Vault then tries every role
				return loginBody(), nil
			}
			return loginBody(pair{"name", []byte(a.Role)}), nil
		},
		blame: func(_ int, said string) string {
			if strings.Contains(said, "tls connection required") {
				return setting + " needs TLS all the way: store.vault.address must begin with https:// and no proxy may end it"
			}
			return fmt.Sprintf("%s.mount or %s.role %q does not exist, or %s.cert_file is not accepted (expired, another CA)", setting, setting, a.Role, setting)
		},
	}, err
}

func (a *TokenAuth) method() (method, error) {
	const setting = "store.vault.auth.token"
	return method{
		setting: setting,
		file:    true,
		token: func() (string, error) {
			token, err := readCredential(a.File)
			if err != nil {
				return "", fmt.Errorf("%s.file: %w", setting, err)
			}
			defer clear(token)
			return string(token), nil // a header's value is a string
		},
		blame: func(int, string) string {
			return "Vault does not know the token in " + setting + ".file: it expired or was revoked"
		},
	}, required(setting, "file", a.File)
}

func staticMethod(v *secret.Value) method {
	return method{
		setting: "the Vault token",
		token: func() (token string, err error) {
			if !v.Use(func(b []byte) { token = string(b) }) || token == "" {
				return "", errors.New("the Vault token is empty: set VAULT_TOKEN or log in with `vault login`")
			}
			return token, nil
		},
		blame: func(int, string) string {
			return "Vault does not know the token: it expired or was revoked. Set VAULT_TOKEN or log in with `vault login`"
		},
	}
}

// callerMethod uses a token that a caller presented.
func callerMethod(v *secret.Value) method {
	m := staticMethod(v)
	m.setting = "the caller's Vault token"
	m.token = func() (token string, err error) {
		if !v.Use(func(b []byte) { token = string(b) }) || token == "" {
			return "", errors.New("the caller presented no Vault token")
		}
		return token, nil
	}
	m.blame = func(int, string) string { return "Vault does not know the caller's token: it expired or was revoked" }
	return m
}

// pair is one member of a login's body.
type pair struct {
	name  string
	value []byte
}

// loginBody makes the body of a login in one buffer.
func loginBody(pairs ...pair) []byte {
	size := 2
	for _, p := range pairs {
		size += quotedLen(len(p.name)) + quotedLen(len(p.value)) + 2
	}
	body := append(make([]byte, 0, size), '{')
	for i, p := range pairs {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(appendQuoted(body, []byte(p.name)), ':')
		body = appendQuoted(body, p.value)
	}
	return append(body, '}')
}

// readCredential reads a file that holds one credential, without the white
// space around it. The caller clears what it returns.
func readCredential(file string) ([]byte, error) {
	whole, err := readFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(whole)
	credential := bytes.TrimSpace(whole)
	if len(credential) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	for _, c := range credential {
		if c <= ' ' || c > '~' {
			return nil, fmt.Errorf("%s holds more than one line of printable text", file)
		}
	}
	return bytes.Clone(credential), nil
}

// refused turns a failed login into the error that names the setting.
func (m method) refused(err error) error {
	var f *failure
	if !errors.As(err, &f) || f.status == 0 || f.reason == store.ErrUnavailable {
		return err
	}
	return fail(store.ErrUnauthenticated, "%s (Vault: HTTP %d, %s)", m.blame(f.status, f.said), f.status, f.said)
}
