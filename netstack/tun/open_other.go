//go:build !linux

package tun

// Open creates the TUN device that cfg names. On this operating system it
// returns ErrUnsupported, after errors about cfg.
func Open(cfg Config) (Device, error) {
	if _, err := cfg.withDefaults(); err != nil {
		return nil, err
	}
	return nil, ErrUnsupported
}
