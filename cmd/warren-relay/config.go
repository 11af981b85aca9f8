package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// configFile is read where it is there and --config names no other.
const configFile = "/etc/warren-relay/config.yaml"

// maxConfig bounds the file: a line for each flag is a hundredth of that.
const maxConfig = 64 << 10

// errConfig is wrapped by the errors about what a file says.
var errConfig = errors.New("the configuration file is wrong")

// applyFile sets the flags that the command line does not set to what the YAML
// file at path says. A file that is not there is an error where it was asked for.
func applyFile(c *cobra.Command, path string, asked bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !asked {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	switch {
	case err != nil:
		return fmt.Errorf("--config: %w", err)
	case len(text) > maxConfig:
		return fmt.Errorf("--config: %w: %s has more than %d bytes", errConfig, path, maxConfig)
	}
	if err := apply(c, text); err != nil {
		return fmt.Errorf("--config: %s: %w", path, err)
	}
	return nil
}

// apply sets the flags that are not set yet to what a YAML document says: one
// mapping, whose keys are the names of flags and whose values are as on the
// command line. Nothing else is understood, and the error, which wraps errConfig,
// says on which line it is. An empty document says nothing.
func apply(c *cobra.Command, text []byte) error {
	settings, err := settingsOf(text)
	if err != nil {
		return err
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(settings); i += 2 {
		key, value := settings[i], settings[i+1]
		flag := c.Flags().Lookup(key.Value)
		switch line := seen[key.Value]; {
		case key.Kind != yaml.ScalarNode || flag == nil || key.Value == "config" || key.Value == "help":
			return fmt.Errorf("%w: line %d: there is no setting %q; `warren-relay serve --help` lists them, without the dashes", errConfig, key.Line, key.Value)
		case line != 0:
			return fmt.Errorf("%w: line %d: %s is on line %d already", errConfig, key.Line, key.Value, line)
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			return fmt.Errorf("%w: line %d: %s takes one value", errConfig, value.Line, key.Value)
		}
		seen[key.Value] = key.Line
		if flag.Changed {
			continue // the command line goes first
		}
		if err := flag.Value.Set(value.Value); err != nil {
			return fmt.Errorf("%w: line %d: %s: %w", errConfig, value.Line, key.Value, err)
		}
		flag.Changed = true
	}
	return nil
}

// settingsOf returns the keys and values of the mapping that a document is.
func settingsOf(text []byte) ([]*yaml.Node, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil { // names the line
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	if len(root.Content) == 0 {
		return nil, nil
	}
	document := root.Content[0]
	if document.Kind == yaml.ScalarNode && document.Tag == "!!null" {
		return nil, nil // comments
	}
	if document.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%w: line %d: it is no list of settings such as `name: fra-1`", errConfig, document.Line)
	}
	return document.Content, nil
}
