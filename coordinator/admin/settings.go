package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/warren-overlay/warren/coordinator/registry"
)

// Settings returns what can be turned off for all devices, by name.
func (c *Client) Settings(ctx context.Context) ([]Setting, error) {
	return ask[[]Setting](ctx, c, "GET", "/v1/settings", nil)
}

// SetSetting turns something off for all devices, or on again.
func (c *Client) SetSetting(ctx context.Context, name string, on bool) (Setting, error) {
	return ask[Setting](ctx, c, "PUT", "/v1/settings/"+url.PathEscape(name), SetSetting{On: on})
}

func describeSetting(f registry.Feature, off time.Time) Setting {
	return Setting{Name: string(f), On: off.IsZero(), Off: off}
}

func (h *Handler) settings(r *http.Request) ([]Setting, error) {
	return look(h, r, func(v *View) ([]Setting, error) {
		out := []Setting{}
		for _, f := range registry.Features() {
			out = append(out, describeSetting(f, v.State.Off(f)))
		}
		return out, nil
	})
}

func (h *Handler) setSetting(r *http.Request) (Setting, error) {
	var body SetSetting
	if err := decode(r, &body); err != nil {
		return Setting{}, err
	}
	result, err := h.execute(r, registry.SetFeature{Feature: registry.Feature(r.PathValue("name")), Off: !body.On})
	if err != nil {
		return Setting{}, err
	}
	return describeSetting(result.Switch.Feature, result.Switch.Off), nil
}
