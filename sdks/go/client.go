// Package guard is a client of the gateway's prompt-injection detection API.
//
//	client, err := guard.New("gw_live_…", guard.WithBaseURL("https://gateway.example.com"))
//	verdict, err := client.Detect(ctx, "Ignore all previous instructions.")
//	if verdict.Flagged() { … }
package guard

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Version of this library.
const Version = "0.1.0"

const (
	longestWait    = 8 * time.Second
	patienceMax    = time.Hour
	itemsMax       = 1000
	pollSeconds    = 500 * time.Millisecond
	pollSecondsMax = 5 * time.Second
)

// Client asks a gateway for verdicts. It is safe for concurrent use.
type Client struct {
	apiKey     string
	baseURL    string
	timeout    time.Duration
	maxRetries int
	failOpen   bool
	http       *http.Client
	firstWait  time.Duration
}

// Option changes a client.
type Option func(*Client)

// WithBaseURL names the gateway; the default is http://127.0.0.1:8000.
func WithBaseURL(address string) Option {
	return func(c *Client) { c.baseURL = strings.TrimRight(address, "/") }
}

// WithTimeout is the deadline of each call with all its repetitions, beside the context's own.
func WithTimeout(timeout time.Duration) Option { return func(c *Client) { c.timeout = timeout } }

// WithMaxRetries says how often a call is repeated; the default is 3.
func WithMaxRetries(retries int) Option { return func(c *Client) { c.maxRetries = retries } }

// WithFailOpen has Detect allow a text, and say FailedOpen, when there is no verdict to be had.
func WithFailOpen() Option { return func(c *Client) { c.failOpen = true } }

// WithHTTPClient brings a client of your own, with its proxies and certificates. Redirects are not followed.
func WithHTTPClient(client *http.Client) Option { return func(c *Client) { c.http = client } }

// New makes a client.
func New(apiKey string, options ...Option) (*Client, error) {
	client := &Client{
		apiKey:     apiKey,
		baseURL:    "http://127.0.0.1:8000",
		timeout:    30 * time.Second,
		maxRetries: 3,
		firstWait:  500 * time.Millisecond,
		http:       &http.Client{},
	}
	for _, option := range options {
		option(client)
	}
	if client.timeout <= 0 {
		return nil, errors.New("the timeout has to be above 0")
	}
	own := *client.http
	// On the way DELETE becomes GET, and the answer to that is fine.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.http = &own
	if apiKey == "" {
		return nil, errors.New("no API key")
	}
	if strings.IndexFunc(apiKey, func(one rune) bool { return one <= ' ' || one > '~' }) >= 0 {
		return nil, errors.New("the API key has a blank, a line break or a letter that none has")
	}
	if !isAddress(client.baseURL) {
		return nil, fmt.Errorf("the base URL must be like https://gateway.example.com, not %q", client.baseURL)
	}
	return client, nil
}

var address = regexp.MustCompile(`^(?i)https?://[^\s/\\?#@][^\s\\?#@]*$`)

// isAddress says whether it is one of a gateway, perhaps below a path.
func isAddress(text string) bool {
	parts, err := url.Parse(text)
	if err != nil || !address.MatchString(text) {
		return false
	}
	port, err := strconv.ParseUint(parts.Port(), 10, 16)
	return parts.Port() == "" || (err == nil && port > 0)
}

type detectRequest struct {
	Text       string         `json:"text"`
	Config     *Config        `json:"config,omitempty"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	WebhookURL string         `json:"webhook_url,omitempty"`
}

// DetectOption changes one call of Detect.
type DetectOption func(*detectRequest)

// WithConfig is what this request changes of its key's policy.
func WithConfig(config Config) DetectOption { return func(r *detectRequest) { r.Config = &config } }

// WithContentType says what the text is: user_input, document, tool_output, model_output.
func WithContentType(kind string) DetectOption {
	return func(r *detectRequest) {
		if r.Config == nil {
			r.Config = &Config{}
		}
		r.Config.ContentType = kind
	}
}

// WithMetadata is echoed, and told to webhooks; at most 1 kB as JSON.
func WithMetadata(metadata map[string]any) DetectOption {
	return func(r *detectRequest) { r.Metadata = metadata }
}

// WithWebhookURL has the verdict sent there as well.
func WithWebhookURL(address string) DetectOption {
	return func(r *detectRequest) { r.WebhookURL = address }
}

// Detect returns the verdict on one text of 1 to 10,000 characters.
func (c *Client) Detect(ctx context.Context, text string, options ...DetectOption) (*Detection, error) {
	request := detectRequest{Text: text}
	for _, option := range options {
		option(&request)
	}
	var found Detection
	meta, err := c.ask(ctx, http.MethodPost, "/v1/detect", request, nil, as(&found))
	if err != nil {
		if c.failOpen && isOutage(err) {
			return &Detection{
				Decision: "allow", Status: "unavailable", Source: "none", FailedOpen: true,
				DegradedReason: "the gateway gave no verdict: " + err.Error(),
				Meta:           Meta{Attempts: attemptsOf(err)},
			}, nil
		}
		return nil, err
	}
	found.Meta = meta
	return &found, nil
}

// Score returns the bare score of a text, without policy, log row or charge to the day.
func (c *Client) Score(ctx context.Context, text string) (*Score, error) {
	var found Score
	meta, err := c.ask(ctx, http.MethodPost, "/v1/detect/score", map[string]string{"text": text}, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// CreateBatch has up to 1,000 texts judged: results at once for up to 100, else a Job.
func (c *Client) CreateBatch(ctx context.Context, items []Item) (*Batch, error) {
	return c.createBatch(ctx, items, newKey())
}

func (c *Client) createBatch(ctx context.Context, items []Item, key string) (*Batch, error) {
	var found Batch
	header := http.Header{"Idempotency-Key": {key}}
	meta, err := c.ask(ctx, http.MethodPost, "/v1/detect/batch", map[string]any{"requests": items}, header,
		func(status int, text []byte) bool {
			return as(&found)(status, text) && (found.Results == nil || isOf(found.Results, items))
		})
	found.Meta = meta
	return pointer(&found, err)
}

// Job says how far a batch is.
func (c *Client) Job(ctx context.Context, batchID string) (*Job, error) {
	var found Job
	path := "/v1/detect/batch/" + url.PathEscape(batchID) + "?limit=1"
	meta, err := c.ask(ctx, http.MethodGet, path, nil, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// CancelBatch judges nothing more of it; what is judged stays.
func (c *Client) CancelBatch(ctx context.Context, batchID string) (*Job, error) {
	var found Job
	meta, err := c.ask(ctx, http.MethodDelete, "/v1/detect/batch/"+url.PathEscape(batchID), nil, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// WaitBatch returns when the batch is over, or the context is. Each look costs one of the minute,
// so they grow apart. The gateway may be away meanwhile. Progress may be nil.
func (c *Client) WaitBatch(ctx context.Context, batchID string, progress func(*Job)) (*Job, error) {
	for wait := pollSeconds; ; wait = min(pollSecondsMax, wait*3/2) {
		var job *Job
		err := c.patiently(ctx, func() (err error) { job, err = c.Job(ctx, batchID); return })
		if err != nil {
			return nil, err
		}
		if progress != nil {
			progress(job)
		}
		if job.Status == "cancelled" {
			return job, &failure{kind: ErrBatchCancelled, message: "the batch was cancelled"}
		}
		if job.IsOver() {
			return job, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return job, err
		}
	}
}

// BatchResults calls each for every finished result, in their order. A page that is lost is asked
// for again until the context is over.
func (c *Client) BatchResults(ctx context.Context, batchID string, each func(ItemResult) error) error {
	return pagesBy(ctx, c, c.patiently, "/v1/detect/batch/"+url.PathEscape(batchID)+"?limit=200", each)
}

// patiently repeats what is under way already until the context is over: it outlives an absence
// longer than the deadline of a call. An error that time does not help with is returned at once.
func (c *Client) patiently(ctx context.Context, ask func() error) error {
	for wait := c.firstWait; ; wait = min(longestWait, wait*2) {
		err := ask()
		pause := wait
		if limited := new(APIError); errors.As(err, &limited) && limited.Status == http.StatusTooManyRequests {
			pause = max(pause, time.Duration(limited.RetryAfter*float64(time.Second)))
			if pause > patienceMax {
				return err
			}
		} else if err == nil || !isOutage(err) || ctx.Err() != nil {
			return err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
			return err
		}
		if sleep(ctx, pause) != nil {
			return err
		}
	}
}

func atOnce(_ context.Context, ask func() error) error { return ask() }

// DetectMany judges any number of texts, a thousand at a time, and calls each in their order. Items
// without an ID get their number.
func (c *Client) DetectMany(ctx context.Context, items []Item, each func(ItemResult) error) error {
	for first := 0; first < len(items); first += itemsMax {
		some := append([]Item(nil), items[first:min(first+itemsMax, len(items))]...)
		for n := range some {
			if some[n].ID == "" {
				some[n].ID = strconv.Itoa(first + n)
			}
		}
		try := atOnce // what was not taken is told at once; later, the gateway is away, and not elsewhere
		if first > 0 {
			try = c.patiently
		}
		var batch *Batch
		key := newKey()
		err := try(ctx, func() (err error) { batch, err = c.createBatch(ctx, some, key); return })
		if err != nil {
			return err
		}
		taken := 0
		take := func(result ItemResult) error {
			if taken == len(some) || result.ID != some[taken].ID {
				return outOfOrder(taken, len(some), fmt.Sprintf("a result of %q", result.ID))
			}
			taken++
			return each(result)
		}
		if batch.Results == nil {
			if _, err := c.WaitBatch(ctx, batch.BatchID, nil); err != nil {
				return err
			}
			if err := c.BatchResults(ctx, batch.BatchID, take); err != nil {
				return err
			}
		}
		for _, result := range batch.Results {
			if err := take(result); err != nil {
				return err
			}
		}
		if taken < len(some) {
			return outOfOrder(taken, len(some), "an end")
		}
	}
	return nil
}

// isOf says whether there is a result of each item: who reads them beside their texts would take one
// text's verdict for another's.
func isOf(results []ItemResult, items []Item) bool {
	for n := range results {
		if n == len(items) || results[n].ID != items[n].ID {
			return false
		}
	}
	return len(results) == len(items)
}

func outOfOrder(taken, total int, what string) error {
	return &failure{
		kind:    ErrInvalidResponse,
		message: fmt.Sprintf("instead of result %d of %d there is %s", taken+1, total, what),
	}
}

// Feedback says that a verdict was false_positive, false_negative or correct.
func (c *Client) Feedback(ctx context.Context, requestID, verdict, note string) error {
	body := map[string]string{"request_id": requestID, "verdict": verdict}
	if note != "" {
		body["note"] = note
	}
	_, err := c.ask(ctx, http.MethodPost, "/v1/feedback", body, nil, func(_ int, text []byte) bool {
		var found struct{ Verdict string }
		return json.Unmarshal(text, &found) == nil && found.Verdict != ""
	})
	return err
}

// Limits says what is left of each limit, and costs nothing.
func (c *Client) Limits(ctx context.Context) (*Limits, error) {
	var found Limits
	meta, err := c.ask(ctx, http.MethodGet, "/v1/limits", nil, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// Policy returns what counts as an attack for the calling key.
func (c *Client) Policy(ctx context.Context) (*Policy, error) {
	var found Policy
	meta, err := c.ask(ctx, http.MethodGet, "/v1/policy", nil, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// SetPolicy replaces it; with ifVersion above zero, only if that one is still in force.
func (c *Client) SetPolicy(ctx context.Context, policy any, ifVersion int) (*Policy, error) {
	var found Policy
	var header http.Header
	if ifVersion > 0 {
		header = http.Header{"If-Match": {fmt.Sprintf("%q", strconv.Itoa(ifVersion))}}
	}
	meta, err := c.ask(ctx, http.MethodPut, "/v1/policy", policy, header, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// RotateKey makes a successor of the calling key, which works for grace more.
func (c *Client) RotateKey(ctx context.Context, grace time.Duration) (*Rotation, error) {
	var found Rotation
	body := map[string]int{"grace_seconds": int(grace.Seconds())}
	meta, err := c.ask(ctx, http.MethodPost, "/auth/rotate-key", body, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// Keys calls each for every key of the workspace.
func (c *Client) Keys(ctx context.Context, each func(Key) error) error {
	return pages(ctx, c, "/v1/keys", each)
}

// CreateKey makes a key; the answer holds it, this once.
func (c *Client) CreateKey(ctx context.Context, key Key) (*Key, error) {
	var found Key
	meta, err := c.ask(ctx, http.MethodPost, "/v1/keys", key, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// RevokeKey ends a key.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.end(ctx, "/v1/keys/"+url.PathEscape(id))
}

// Webhooks calls each for every webhook of the workspace.
func (c *Client) Webhooks(ctx context.Context, each func(Webhook) error) error {
	return pages(ctx, c, "/webhooks/list", each)
}

// CreateWebhook registers one; the answer holds its secret, this once.
func (c *Client) CreateWebhook(ctx context.Context, webhook Webhook) (*Webhook, error) {
	var found Webhook
	meta, err := c.ask(ctx, http.MethodPost, "/webhooks/register", webhook, nil, as(&found))
	found.Meta = meta
	return pointer(&found, err)
}

// DeleteWebhook ends one.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	return c.end(ctx, "/webhooks/"+url.PathEscape(id))
}

// Call is any call, with key, deadline and repetitions. Into may be nil: then an answer is nothing, or any JSON.
func (c *Client) Call(ctx context.Context, method, path string, body, into any) error {
	_, err := c.ask(ctx, method, path, body, nil, func(_ int, text []byte) bool {
		if into == nil {
			return len(text) == 0 || json.Valid(text)
		}
		return json.Unmarshal(text, into) == nil
	})
	return err
}

// end is for what is answered with nothing: whoever says no more than "fine" to it may be a proxy.
func (c *Client) end(ctx context.Context, path string) error {
	_, err := c.ask(ctx, http.MethodDelete, path, nil, nil, func(status int, _ []byte) bool {
		return status == http.StatusNoContent
	})
	return err
}

// taker takes an answer below 300; false: it is not the gateway's.
type taker func(status int, text []byte) bool

// whole can tell itself from other JSON: it has what its readers decide by.
type whole[T any] interface {
	*T
	isWhole() bool
}

// as reads into found. Of an answer that is not taken nothing stays in it.
func as[T any, P whole[T]](found *T) taker {
	return func(_ int, text []byte) bool {
		var fresh T
		if json.Unmarshal(text, &fresh) != nil || !P(&fresh).isWhole() {
			return false
		}
		*found = fresh
		return true
	}
}

func pages[T any, P whole[T]](ctx context.Context, c *Client, path string, each func(T) error) error {
	return pagesBy[T, P](ctx, c, atOnce, path, each)
}

func pagesBy[T any, P whole[T]](
	ctx context.Context, c *Client, try func(context.Context, func() error) error, path string, each func(T) error,
) error {
	for path != "" {
		var page struct {
			Results []T     `json:"results"`
			Next    *string `json:"next"`
		}
		err := try(ctx, func() error {
			_, err := c.ask(ctx, http.MethodGet, path, nil, nil, func(_ int, text []byte) bool {
				page.Results, page.Next = nil, nil
				if json.Unmarshal(text, &page) != nil || page.Results == nil {
					return false
				}
				for n := range page.Results {
					if !P(&page.Results[n]).isWhole() {
						return false
					}
				}
				if page.Next == nil {
					return true
				}
				// A next page that is this one is of a cache that does not look at the query.
				this, _ := c.address(path)
				next, err := c.address(*page.Next)
				return err == nil && next != this
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, one := range page.Results {
			if err := each(one); err != nil {
				return err
			}
		}
		path = ""
		if page.Next != nil {
			path = *page.Next
		}
	}
	return nil
}

// ask sends a request until an answer is taken, nothing helps, or the time is over. The same
// Idempotency-Key goes with each repetition, so that whatever the first one did is done once.
func (c *Client) ask(
	ctx context.Context, method, path string, body any, header http.Header, takes taker,
) (Meta, error) {
	ctx, stop := context.WithTimeout(ctx, c.timeout)
	defer stop()
	var content []byte
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return Meta{}, err
		}
	}
	idempotencyKey := header.Get("Idempotency-Key")
	if idempotencyKey == "" && method != http.MethodGet {
		idempotencyKey = newKey()
	}
	address, err := c.address(path)
	if err != nil {
		return Meta{}, err
	}
	for attempts := 1; ; attempts++ {
		meta, wait, err := c.attempt(ctx, method, address, content, header, idempotencyKey, attempts, takes)
		if err == nil || wait < 0 || attempts > c.maxRetries {
			return meta, err
		}
		backoff := time.Duration(float64(min(longestWait, c.firstWait<<(attempts-1))) * (0.5 + mathrand.Float64()/2))
		if wait > 0 {
			backoff = max(backoff, wait+time.Duration(mathrand.Int63n(int64(250*time.Millisecond))))
		}
		// A wait that would outlast the deadline is not begun.
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= backoff {
			return meta, err
		}
		if sleep(ctx, backoff) != nil {
			return meta, err
		}
	}
}

// attempt is one request. Its duration is how long the gateway asks to wait before the next one;
// negative: there is none.
func (c *Client) attempt(
	ctx context.Context, method, address string, content []byte, header http.Header,
	idempotencyKey string, attempts int, takes taker,
) (Meta, time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(content))
	if err != nil {
		return Meta{}, -1, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	request.Header.Set("Authorization", "Bearer "+c.apiKey)
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "gateway-guard-go/"+Version)
	if content != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if idempotencyKey != "" {
		request.Header.Set("Idempotency-Key", idempotencyKey)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return Meta{}, c.unlessOver(ctx), c.unreachable(ctx, err, attempts)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return Meta{}, c.unlessOver(ctx), c.unreachable(ctx, err, attempts)
	}
	meta := metaOf(response, attempts)
	if response.StatusCode < 300 {
		if takes(response.StatusCode, text) {
			return meta, -1, nil
		}
		return meta, 0, notOurs(response, attempts, "with a body that this API does not send: is there a proxy in between?")
	}
	if where := response.Header.Get("Location"); where != "" && response.StatusCode < 400 {
		return meta, -1, notOurs(response, attempts, fmt.Sprintf("to %q, which is not followed: is the base URL right?", where))
	}
	var problem APIError
	isProblem := json.Unmarshal(text, &problem) == nil && problem.Code != ""
	wait := time.Duration(-1)
	problem.RetryAfter = retryAfterOf(response.Header)
	if isRepeated(response.StatusCode, problem.Code) {
		wait = time.Duration(max(0, problem.RetryAfter) * float64(time.Second))
	}
	if !isProblem {
		return meta, wait, notOurs(response, attempts, "without a problem of this API: is there a proxy in between?")
	}
	problem.Status, problem.Attempts = response.StatusCode, attempts
	return meta, wait, &problem
}

func (c *Client) unlessOver(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return -1
	}
	return 0
}

func (c *Client) unreachable(ctx context.Context, cause error, attempts int) error {
	if ctx.Err() != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return &failure{kind: ErrTimeout, message: "no answer of " + c.baseURL + " within the deadline", attempts: attempts}
	}
	return &failure{kind: ErrConnection, message: c.baseURL + " cannot be reached", cause: cause, attempts: attempts}
}

func notOurs(response *http.Response, attempts int, why string) error {
	return &failure{kind: ErrInvalidResponse, message: response.Status + " " + why, attempts: attempts}
}

// address is for a path, or a whole address that the gateway gave (next): its host is not believed. One
// that would lead elsewhere than it says is an error: ".." is folded on the way, and an empty id asks for
// the list that the object is in.
func (c *Client) address(path string) (string, error) {
	parts, err := url.Parse(path)
	if err != nil {
		return "", err
	}
	local := parts.EscapedPath()
	first, rest, isRooted := strings.Cut(local, "/")
	for _, name := range strings.Split(rest, "/") {
		if first != "" || !isRooted || name == "" || name == "." || name == ".." {
			return "", fmt.Errorf("%q is no path of this API: is an id in it empty, or dots?", path)
		}
	}
	if parts.RawQuery != "" {
		local += "?" + parts.RawQuery
	}
	return c.baseURL + local, nil
}

func isRepeated(status int, code string) bool {
	switch status {
	case 408, 429, 500, 502, 503, 504:
		return true
	}
	return code == "idempotency_in_progress"
}

func isOutage(err error) bool {
	return errors.Is(err, ErrConnection) || errors.Is(err, ErrInvalidResponse) || errors.Is(err, ErrServer)
}

func attemptsOf(err error) int {
	var problem *APIError
	if errors.As(err, &problem) {
		return problem.Attempts
	}
	var other *failure
	if errors.As(err, &other) {
		return other.attempts
	}
	return 0
}

// retryAfterOf is in seconds; negative without the header (RFC 9110, 10.2.3: a number or a date).
func retryAfterOf(header http.Header) float64 {
	text := strings.TrimSpace(header.Get("Retry-After"))
	if text == "" {
		return -1
	}
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		return float64(seconds)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at).Seconds())
	}
	return -1
}

func metaOf(response *http.Response, attempts int) Meta {
	quotas := map[string]int64{}
	for _, one := range items(response.Header.Get("RateLimit-Policy")) {
		quotas[one.name] = one.numbers["q"]
	}
	meta := Meta{
		Status:    response.StatusCode,
		RequestID: response.Header.Get("X-Request-ID"),
		Attempts:  attempts,
		Replayed:  strings.EqualFold(response.Header.Get("Idempotency-Replayed"), "true"),
	}
	for _, one := range items(response.Header.Get("RateLimit")) {
		meta.RateLimits = append(meta.RateLimits, RateLimit{
			Name: one.name, Limit: quotas[one.name], Remaining: one.numbers["r"], ResetSeconds: one.numbers["t"],
		})
	}
	return meta
}

type headerItem struct {
	name    string
	numbers map[string]int64
}

// items of a header such as `"minute";r=59;t=60, "day";r=9999;t=40000`.
func items(text string) []headerItem {
	var found []headerItem
	for _, item := range strings.Split(text, ",") {
		fields := strings.Split(strings.TrimSpace(item), ";")
		if fields[0] == "" {
			continue
		}
		numbers := map[string]int64{}
		for _, one := range fields[1:] {
			key, value, _ := strings.Cut(strings.TrimSpace(one), "=")
			if number, err := strconv.ParseUint(value, 10, 63); err == nil {
				numbers[key] = int64(number)
			}
		}
		found = append(found, headerItem{strings.Trim(fields[0], `"`), numbers})
	}
	return found
}

func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func newKey() string {
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		panic(err) // there is no safe way on without randomness
	}
	return hex.EncodeToString(random)
}

func pointer[T any](found *T, err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return found, nil
}
