package tun

import (
	"net/netip"
	"strings"
	"testing"
)

func TestConfigDefaults(t *testing.T) {
	cfg, err := Config{}.withDefaults()
	if err != nil || cfg.Name != DefaultName || cfg.MTU != DefaultMTU {
		t.Fatalf("%+v, %v", cfg, err)
	}
	for _, bad := range []Config{
		{Name: strings.Repeat("x", 16)},
		{Name: "a/b"},
		{Name: "a b"},
		{Name: ".."},
		{Name: "."},
		{Name: "a:b"},
		{Name: "\x00"},
		{Name: "ä"},
		{MTU: 575},
		{MTU: 65536},
		{MTU: -1},
	} {
		if _, err := bad.withDefaults(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
		if _, err := Open(bad); err == nil {
			t.Errorf("Open(%+v) succeeded", bad)
		}
	}
}

func TestSettingsValidate(t *testing.T) {
	good := Settings{Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}, MTU: 1280}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	mapped := netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 128)
	for _, bad := range []Settings{
		{Addresses: []netip.Prefix{{}}}, {Routes: []netip.Prefix{{}}}, {Addresses: []netip.Prefix{mapped}}, {MTU: 100},
	} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}
