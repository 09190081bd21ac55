package vault

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/postern-proxy/postern/agent/secret"
	"github.com/postern-proxy/postern/agent/store"
)

// The shapes of Vault's answers. Their parts are slices of the answer and end with it.

// is compares a quoted name.
func is(name []byte, want string) bool {
	return len(name) == len(want)+2 && string(name[1:len(name)-1]) == want
}

// envelope is what every answer of Vault looks like.
type envelope struct {
	data, auth, leaseID, leaseDuration, renewable, requestID []byte
}

func parseEnvelope(body []byte) (e envelope, err error) {
	root, err := document(body)
	if err != nil {
		return e, err
	}
	err = members(root, func(name, value []byte) error {
		switch {
		case is(name, "data"):
			e.data = value
		case is(name, "auth"):
			e.auth = value
		case is(name, "lease_id"):
			e.leaseID = value
		case is(name, "lease_duration"):
			e.leaseDuration = value
		case is(name, "renewable"):
			e.renewable = value
		case is(name, "request_id"):
			e.requestID = value
		}
		return nil
	})
	return e, err
}

// request is what Vault's own audit log calls the request; "" if the answer does not say it.
func (e envelope) request() string {
	id, err := text(e.requestID)
	if err != nil {
		return ""
	}
	return clean(id)
}

// lease is the answer's own term; nil where there is none.
func (e envelope) lease() (*store.Lease, error) {
	id, err := text(e.leaseID)
	if err != nil || id == "" {
		return nil, err
	}
	term, err := seconds(e.leaseDuration)
	if err != nil {
		return nil, err
	}
	renewable, err := boolean(e.renewable)
	return &store.Lease{ID: id, Duration: term, Renewable: renewable}, err
}

// kvData is the data of a KV v2 read.
type kvData struct{ data, metadata []byte }

func parseKVData(v []byte) (kv kvData, err error) {
	err = members(v, func(name, value []byte) error {
		switch {
		case is(name, "data"):
			kv.data = value
		case is(name, "metadata"):
			kv.metadata = value
		}
		return nil
	})
	return kv, err
}

// missingVersion reads the version from a 404 whose path exists.
func missingVersion(body []byte) (store.Version, bool) {
	e, err := parseEnvelope(body)
	if err != nil || isNull(e.data) {
		return store.Version{}, false
	}
	kv, err := parseKVData(e.data)
	if err != nil {
		return store.Version{}, false
	}
	about := kv.metadata // of a read; a patch has the same members one level up
	if isNull(about) {
		about = e.data
	}
	v, err := parseVersion(about)
	return v, err == nil && v.Number > 0
}

// parseVersion reads what Vault tells about one version: in the answer to a
// write, beside the data of a read, and in the metadata (where the number is the name).
func parseVersion(v []byte) (out store.Version, err error) {
	err = members(v, func(name, value []byte) (err error) {
		switch {
		case is(name, "version"):
			var n int64
			n, err = integer(value)
			out.Number = int(n)
		case is(name, "created_time"):
			out.Created, err = instant(value)
		case is(name, "deletion_time"):
			out.Deleted, err = instant(value)
		case is(name, "destroyed"):
			out.Destroyed, err = boolean(value)
		case is(name, "created_by"):
			out.CreatedBy, err = parseCreator(value)
		}
		return err
	})
	return out, err
}

// parseCreator reads the entity id from created_by: {actor, entity_id, …}.
func parseCreator(v []byte) (id string, err error) {
	if isNull(v) {
		return "", nil
	}
	err = members(v, func(name, value []byte) (err error) {
		if is(name, "entity_id") {
			id, err = text(value)
		}
		return err
	})
	return id, err
}

// parseMetadata reads a path's metadata. Now is the time after which a version
// with an end set beforehand counts as deleted.
func parseMetadata(v []byte, now time.Time) (*store.Metadata, error) {
	m := &store.Metadata{}
	err := members(v, func(name, value []byte) (err error) {
		var n int64
		switch {
		case is(name, "current_version"):
			n, err = integer(value)
			m.Current = int(n)
		case is(name, "max_versions"):
			n, err = integer(value)
			m.MaxVersions = int(n)
		case is(name, "custom_metadata"):
			m.Custom, err = parseStrings(value)
		case is(name, "versions"):
			m.Versions, err = parseVersions(value, now)
		}
		return err
	})
	return m, err
}

func parseVersions(v []byte, now time.Time) ([]store.Version, error) {
	if isNull(v) {
		return nil, nil
	}
	var out []store.Version
	err := members(v, func(name, value []byte) error {
		number, err := strconv.Atoi(string(bytes.Trim(name, `"`)))
		if err != nil {
			return errKind
		}
		version, err := parseVersion(value)
		if err != nil {
			return err
		}
		version.Number = number
		if version.Deleted.After(now) || version.Destroyed {
			version.Deleted = time.Time{}
		}
		out = append(out, version)
		return nil
	})
	slices.SortFunc(out, func(a, b store.Version) int { return a.Number - b.Number })
	return out, err
}

// parseStrings reads an object of strings, nil if it is null.
func parseStrings(v []byte) (map[string]string, error) {
	if isNull(v) {
		return nil, nil
	}
	out := map[string]string{}
	err := members(v, func(name, value []byte) error {
		key, err := text(name)
		if err != nil {
			return err
		}
		out[key], err = text(value)
		return err
	})
	return out, err
}

var errTwice = errors.New("a field is there twice")

// parseFields moves the members of an object into the arena. On an error
// nothing is left of them.
func parseFields(v []byte) (map[string]*secret.Value, error) {
	fields := map[string]*secret.Value{}
	err := members(v, func(name, value []byte) error {
		key, err := text(name)
		if err != nil {
			return err
		}
		if _, twice := fields[key]; twice {
			return errTwice
		}
		fields[key], err = parseValue(value)
		return err
	})
	if err != nil {
		for _, value := range fields {
			value.Destroy()
		}
		return nil, err
	}
	return fields, nil
}

// parseValue moves one value into the arena: a string's content, of anything else its text.
func parseValue(v []byte) (*secret.Value, error) {
	var inner error
	value, err := secret.Make(len(v), func(dst []byte) int {
		if v[0] != '"' {
			return copy(dst, v)
		}
		n, err := unquote(dst, v)
		inner = err
		return n
	})
	if inner != nil {
		value.Destroy()
		return nil, inner
	}
	return value, err
}

// malformed is the error for an answer that is not Vault's.
func (s *Store) malformed(err error) error {
	return fail(store.ErrUnavailable, "the answer of %s is not Vault's (%v): see store.vault.address", s.endpoint(), err)
}

// expect is what is missing in an answer that is JSON, but not what was asked for.
func expect(what string) error { return fmt.Errorf("no %s in it", what) }
