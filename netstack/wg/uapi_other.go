//go:build !linux && !darwin

package wg

import (
	"context"
	"errors"
)

// ServeUAPI returns errors.ErrUnsupported: wg(8) has no socket here that this
// build serves.
func (d *Device) ServeUAPI(context.Context, string) error { return errors.ErrUnsupported }
