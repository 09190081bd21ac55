//go:build !linux

package e2e_test

import "errors"

func raiseCoreLimit(int) error { return errors.ErrUnsupported }
