package guard

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

type operation struct {
	Name        string          `json:"name"`
	Method      string          `json:"method"`
	Path        string          `json:"path"`
	Status      int             `json:"status"`
	Body        json.RawMessage `json:"body"`
	IsList      bool            `json:"is_list"`
	IsAnyObject bool            `json:"is_any_object"`
}

func (o operation) good() reply { return reply{Status: o.Status, Body: o.Body} }

type operations struct {
	Operations []operation `json:"operations"`
	Answers    []struct {
		Name     string `json:"name"`
		Of       string `json:"of"`
		Reply    reply  `json:"reply"`
		Error    string `json:"error"`
		Repeated bool   `json:"repeated"`
	} `json:"answers"`
	IDs   []string `json:"ids"`
	NoIDs []string `json:"no_ids"`
}

const anID = "01a206fe-78a1-766d-896f-d02e80a236dd"

// asked is by the names of ../vectors/operations.json, which are Python's, with the method that does it.
var asked = map[string]struct {
	method string
	ask    func(ctx context.Context, c *Client, id string) error
}{
	"detect": {"Detect", func(ctx context.Context, c *Client, _ string) error { _, err := c.Detect(ctx, "x"); return err }},
	"score":  {"Score", func(ctx context.Context, c *Client, _ string) error { _, err := c.Score(ctx, "x"); return err }},
	"batches.create": {"CreateBatch", func(ctx context.Context, c *Client, _ string) error {
		_, err := c.CreateBatch(ctx, []Item{{ID: "0", Text: "x"}})
		return err
	}},
	"batches.create in the background": {"CreateBatch", func(ctx context.Context, c *Client, _ string) error {
		_, err := c.CreateBatch(ctx, []Item{{ID: "0", Text: "x"}})
		return err
	}},
	"batches.get":    {"Job", func(ctx context.Context, c *Client, id string) error { _, err := c.Job(ctx, id); return err }},
	"batches.cancel": {"CancelBatch", func(ctx context.Context, c *Client, id string) error { _, err := c.CancelBatch(ctx, id); return err }},
	"batches.results": {"BatchResults", func(ctx context.Context, c *Client, id string) error {
		return pagesBy(ctx, c, atOnce, "/v1/detect/batch/"+url.PathEscape(id)+"?limit=200", func(ItemResult) error { return nil })
	}},
	"feedback":   {"Feedback", func(ctx context.Context, c *Client, _ string) error { return c.Feedback(ctx, anID, "correct", "") }},
	"limits":     {"Limits", func(ctx context.Context, c *Client, _ string) error { _, err := c.Limits(ctx); return err }},
	"policy.get": {"Policy", func(ctx context.Context, c *Client, _ string) error { _, err := c.Policy(ctx); return err }},
	"policy.set": {"SetPolicy", func(ctx context.Context, c *Client, _ string) error {
		_, err := c.SetPolicy(ctx, map[string]string{}, 0)
		return err
	}},
	"keys.rotate": {"RotateKey", func(ctx context.Context, c *Client, _ string) error {
		_, err := c.RotateKey(ctx, time.Hour)
		return err
	}},
	"keys.list": {"Keys", func(ctx context.Context, c *Client, _ string) error {
		return c.Keys(ctx, func(Key) error { return nil })
	}},
	"keys.create": {"CreateKey", func(ctx context.Context, c *Client, _ string) error { _, err := c.CreateKey(ctx, Key{}); return err }},
	"keys.revoke": {"RevokeKey", func(ctx context.Context, c *Client, id string) error { return c.RevokeKey(ctx, id) }},
	"webhooks.list": {"Webhooks", func(ctx context.Context, c *Client, _ string) error {
		return c.Webhooks(ctx, func(Webhook) error { return nil })
	}},
	"webhooks.create": {"CreateWebhook", func(ctx context.Context, c *Client, _ string) error {
		_, err := c.CreateWebhook(ctx, Webhook{})
		return err
	}},
	"webhooks.delete": {"DeleteWebhook", func(ctx context.Context, c *Client, id string) error { return c.DeleteWebhook(ctx, id) }},
}

func TestEachCallIsAmongThem(t *testing.T) {
	tried := map[string]bool{"Call": true, "DetectMany": true, "WaitBatch": true, "Middleware": true} // not one call
	for _, one := range asked {
		tried[one.method] = true
	}
	client := reflect.TypeOf(&Client{})
	for n := 0; n < client.NumMethod(); n++ {
		if name := client.Method(n).Name; !tried[name] {
			t.Errorf("%s is not tried", name)
		}
	}
}

func TestNoOtherAnswerIsTakenForTheGateways(t *testing.T) {
	var vectors operations
	read(t, "operations.json", &vectors)
	for _, one := range vectors.Operations {
		one := one
		call, isOurs := asked[one.Name]
		if !isOurs {
			continue
		}
		applies := map[string]bool{"all": true, "bodies": one.Body != nil, "known": !one.IsAnyObject, "lists": one.IsList}
		t.Run(one.Name, func(t *testing.T) {
			t.Parallel()
			for _, answer := range vectors.Answers {
				if !applies[answer.Of] {
					continue
				}
				wanted, line := 1, one.Method+" "+strings.Replace(one.Path, "{id}", anID, 1)
				bad := answer.Reply
				bad.Body = json.RawMessage(strings.ReplaceAll(string(bad.Body), "{path}", strings.Fields(line)[1]))
				address, seen := replaying(t, []reply{bad})
				err := call.ask(context.Background(), clientOf(t, address, WithMaxRetries(1)), anID)
				if kind := kinds[answer.Error]; !errors.Is(err, kind) {
					t.Errorf("%s: %v is not %q", answer.Name, err, kind)
				}
				if answer.Repeated {
					wanted = 2
				}
				if calls := seen(); len(calls) != wanted || calls[0].line != line {
					t.Errorf("%s: %d calls, and not %d of %s: %v", answer.Name, len(calls), wanted, line, calls)
				}
				if !answer.Repeated {
					continue
				}
				address, seen = replaying(t, []reply{bad, one.good()})
				err = call.ask(context.Background(), clientOf(t, address, WithMaxRetries(1)), anID)
				if err != nil || len(seen()) != 2 {
					t.Errorf("%s, then an answer: %v", answer.Name, err)
				}
			}
		})
	}
}

func TestAnIDStaysOnePartOfThePath(t *testing.T) {
	var vectors operations
	read(t, "operations.json", &vectors)
	for _, one := range vectors.Operations {
		call, isOurs := asked[one.Name]
		before, after, hasID := strings.Cut(one.Method+" "+one.Path, "{id}")
		if !isOurs || !hasID {
			continue
		}
		address, seen := replaying(t, []reply{one.good()})
		client := clientOf(t, address)
		for n, id := range vectors.IDs {
			if err := call.ask(context.Background(), client, id); err != nil {
				t.Fatalf("%s of %q: %v", one.Name, id, err)
			}
			sent := strings.TrimSuffix(strings.TrimPrefix(seen()[n].line, before), after)
			if found, err := url.PathUnescape(sent); strings.ContainsAny(sent, "/?#") || found != id || err != nil {
				t.Errorf("%s of %q asked for %q", one.Name, id, sent)
			}
		}
		for _, id := range vectors.NoIDs {
			if call.ask(context.Background(), client, id) == nil {
				t.Errorf("%s of %q", one.Name, id)
			}
		}
		if len(seen()) != len(vectors.IDs) {
			t.Errorf("%s asked for what is no id", one.Name)
		}
	}
}

func TestAPathThatWouldLeadElsewhereIsAskedOfNobody(t *testing.T) {
	address, seen := replaying(t, []reply{{Status: 200, Body: json.RawMessage(`{}`)}})
	client := clientOf(t, address)
	for _, path := range []string{"v1/limits", "@elsewhere.example/", "", "http://[", "/a\x00", "/v1/keys/..", "/v1/./x"} {
		if err := client.Call(context.Background(), http.MethodGet, path, nil, nil); err == nil {
			t.Errorf("%q was asked for", path)
		}
	}
	if len(seen()) > 0 {
		t.Fatal(seen())
	}
}

func TestCallTakesNoPageForDone(t *testing.T) {
	for text, isDone := range map[string]bool{"": true, "{}": true, "<html>": false, "{": false} {
		address, _ := replaying(t, []reply{{Status: 200, Text: text}})
		client := clientOf(t, address, WithMaxRetries(0))
		if err := client.Call(context.Background(), http.MethodPost, "/x", nil, nil); isDone != (err == nil) {
			t.Errorf("%q: %v", text, err)
		}
		var found map[string]any
		if err := client.Call(context.Background(), http.MethodPost, "/x", nil, &found); (text == "{}") != (err == nil) {
			t.Errorf("%q into a map: %v", text, err)
		}
	}
}
