package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// What every client library does alike: ../vectors.

type reply struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
	Text    string            `json:"text"`
	Times   int               `json:"times"`
	Drop    bool              `json:"drop"`
	Half    bool              `json:"half"`
	Silent  bool              `json:"silent"`
	Drip    bool              `json:"drip"`
}

type vector struct {
	Name       string  `json:"name"`
	Replies    []reply `json:"replies"`
	Timeout    float64 `json:"timeout"`
	MaxRetries int     `json:"max_retries"`
	FailOpen   bool    `json:"fail_open"`
	Expect     struct {
		Attempts     int              `json:"attempts"`
		Decision     string           `json:"decision"`
		Error        string           `json:"error"`
		ErrorClass   string           `json:"error_class"`
		Fields       []string         `json:"fields"`
		FailedOpen   bool             `json:"failed_open"`
		WaitsAtLeast float64          `json:"waits_at_least"`
		Remaining    map[string]int64 `json:"remaining"`
	} `json:"expect"`
}

type call struct {
	at   time.Time
	key  string
	line string
}

// kinds are the classes that the vectors name.
var kinds = map[string]Kind{
	"InvalidResponseError": ErrInvalidResponse, "APITimeoutError": ErrTimeout, "APIConnectionError": ErrConnection,
	"PermissionDeniedError": ErrPermissionDenied, "ServerError": ErrServer,
}

func read(t *testing.T, name string, into any) {
	t.Helper()
	content, err := os.ReadFile("../vectors/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatal(err)
	}
}

func replaying(t *testing.T, replies []reply) (string, func() []call) {
	var lock sync.Mutex
	var seen []call
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		lock.Lock()
		seen = append(seen, call{time.Now(), r.Header.Get("Idempotency-Key"), r.Method + " " + r.RequestURI})
		one := replies[min(len(seen), len(replies))-1]
		lock.Unlock()
		if one.Silent {
			<-over
		}
		if one.Drop || one.Silent {
			panic(http.ErrAbortHandler)
		}
		content := []byte(strings.Repeat(one.Text, max(1, one.Times)))
		if one.Text == "" {
			content = one.Body
		}
		for name, value := range one.Headers {
			w.Header().Set(name, value)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.WriteHeader(one.Status)
		switch {
		case one.Half:
			_, _ = w.Write(content[:len(content)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case one.Drip:
			for n := range content {
				if _, err := w.Write(content[n : n+1]); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				select {
				case <-over:
					panic(http.ErrAbortHandler)
				case <-time.After(100 * time.Millisecond):
				}
			}
		default:
			_, _ = w.Write(content)
		}
	}))
	t.Cleanup(func() { close(over); server.CloseClientConnections(); server.Close() })
	return server.URL, func() []call { lock.Lock(); defer lock.Unlock(); return append([]call(nil), seen...) }
}

// clientOf is impatient, and has no connection that Go itself would ask again on.
func clientOf(t *testing.T, address string, options ...Option) *Client {
	t.Helper()
	alone := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	client, err := New("gw_live_x", append(options, WithBaseURL(address), WithHTTPClient(alone))...)
	if err != nil {
		t.Fatal(err)
	}
	client.firstWait = 10 * time.Millisecond
	return client
}

func TestBatches(t *testing.T) {
	var vectors []struct {
		Name    string  `json:"name"`
		Replies []reply `json:"replies"`
		Expect  struct {
			Calls int      `json:"calls"`
			IDs   []string `json:"ids"`
			Error string   `json:"error"`
		} `json:"expect"`
	}
	read(t, "batches.json", &vectors)
	for _, one := range vectors {
		one := one
		t.Run(one.Name, func(t *testing.T) {
			t.Parallel()
			address, seen := replaying(t, one.Replies)
			client := clientOf(t, address, WithMaxRetries(0), WithTimeout(5*time.Second))
			ids := []string{}
			err := client.DetectMany(context.Background(), []Item{{Text: "Hello"}, {Text: "World"}}, func(r ItemResult) error {
				ids = append(ids, r.ID)
				return nil
			})
			if fmt.Sprint(ids) != fmt.Sprint(one.Expect.IDs) || len(seen()) != one.Expect.Calls {
				t.Fatalf("%v after %d calls: %v", ids, len(seen()), err)
			}
			var problem *APIError
			switch {
			case one.Expect.Error == "":
				if err != nil {
					t.Fatal(err)
				}
			case errors.As(err, &problem):
				if problem.Code != one.Expect.Error {
					t.Fatal(err)
				}
			case !errors.Is(err, kinds[one.Expect.Error]):
				t.Fatal(err)
			}
		})
	}
}

func TestCalls(t *testing.T) {
	var vectors []vector
	read(t, "calls.json", &vectors)
	for _, one := range vectors {
		one := one
		t.Run(one.Name, func(t *testing.T) {
			t.Parallel()
			address, seen := replaying(t, one.Replies)
			timeout := time.Duration(one.Timeout * float64(time.Second))
			options := []Option{WithMaxRetries(one.MaxRetries), WithTimeout(timeout)}
			if one.FailOpen {
				options = append(options, WithFailOpen())
			}
			client := clientOf(t, address, options...)
			found, err := client.Detect(context.Background(), "Hello")
			calls := seen()
			if len(calls) != one.Expect.Attempts {
				t.Fatalf("%d attempts, not %d: %v", len(calls), one.Expect.Attempts, err)
			}
			for _, each := range calls {
				if each.key == "" || each.key != calls[0].key {
					t.Fatal("not the same Idempotency-Key with each attempt")
				}
			}
			if wait := one.Expect.WaitsAtLeast; wait > 0 && calls[1].at.Sub(calls[0].at).Seconds() < wait {
				t.Fatal("did not wait as long as it was asked to")
			}
			if one.Expect.Error == "" {
				if err != nil {
					t.Fatal(err)
				}
				if found.Decision != one.Expect.Decision || found.FailedOpen != one.Expect.FailedOpen {
					t.Fatalf("%+v", found)
				}
				if found.Meta.Attempts != one.Expect.Attempts {
					t.Fatalf("says %d attempts", found.Meta.Attempts)
				}
				for _, limit := range found.Meta.RateLimits {
					if wanted, ok := one.Expect.Remaining[limit.Name]; ok && wanted != limit.Remaining {
						t.Fatalf("%+v", limit)
					}
				}
				if len(found.Meta.RateLimits) < len(one.Expect.Remaining) {
					t.Fatal("limits are missing")
				}
				return
			}
			if kind, ok := kinds[one.Expect.ErrorClass]; ok && !errors.Is(err, kind) {
				t.Fatalf("%v is not %q", err, kind)
			}
			if kind, ok := kinds[one.Expect.Error]; ok {
				if !errors.Is(err, kind) {
					t.Fatalf("%v is not %q", err, kind)
				}
				return
			}
			var problem *APIError
			if !errors.As(err, &problem) || problem.Code != one.Expect.Error {
				t.Fatalf("%v is not %s", err, one.Expect.Error)
			}
			for n, field := range one.Expect.Fields {
				if problem.Errors[n].Field != field {
					t.Fatalf("%+v", problem.Errors)
				}
			}
		})
	}
}

func TestSignatures(t *testing.T) {
	var vectors []struct {
		Name    string            `json:"name"`
		Secrets []string          `json:"secrets"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
		Now     int64             `json:"now"`
		Valid   bool              `json:"valid"`
	}
	read(t, "signatures.json", &vectors)
	for _, one := range vectors {
		t.Run(one.Name, func(t *testing.T) {
			header := http.Header{}
			for name, value := range one.Headers {
				header.Set(name, value)
			}
			event, err := verifyWebhookAt(time.Unix(one.Now, 0), []byte(one.Body), header, one.Secrets)
			if one.Valid != (err == nil) {
				t.Fatal(err)
			}
			if err != nil && !errors.Is(err, ErrWebhook) {
				t.Fatalf("%v is not %q", err, ErrWebhook)
			}
			if err == nil && event.Type != "detection.flagged" {
				t.Fatalf("%+v", event)
			}
		})
	}
}

func TestACallerMayGiveUp(t *testing.T) {
	address, _ := replaying(t, []reply{{Silent: true}})
	client, _ := New("k", WithBaseURL(address))
	ctx, stop := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, stop)
	if _, err := client.Detect(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestAMistakeOfTheSettingsIsNoAbsenceOfTheGateway(t *testing.T) {
	var vectors struct {
		Addresses   []string `json:"addresses"`
		NoAddresses []string `json:"no_addresses"`
		NoKeys      []string `json:"no_keys"`
	}
	read(t, "settings.json", &vectors)
	for _, one := range vectors.Addresses {
		if _, err := New("k", WithBaseURL(one)); err != nil {
			t.Error(err)
		}
	}
	for _, one := range vectors.NoAddresses {
		if _, err := New("k", WithBaseURL(one)); err == nil {
			t.Errorf("%q is an address", one)
		}
	}
	for _, one := range []time.Duration{0, -time.Second} {
		if _, err := New("k", WithTimeout(one)); err == nil {
			t.Errorf("%s is a timeout", one)
		}
	}
	for _, one := range vectors.NoKeys {
		if _, err := New(one); err == nil {
			t.Errorf("%q is a key", one)
		}
	}
}

func TestMiddleware(t *testing.T) {
	verdict := `{"request_id":"1","decision":%q,"confidence":1}`
	for decision, status := range map[string]int{"allow": 200, "flag": 403} {
		address, _ := replaying(t, []reply{{Status: 200, Body: json.RawMessage(fmt.Sprintf(verdict, decision))}})
		client, _ := New("k", WithBaseURL(address))
		handler := client.Middleware(JSONField("message"), 1000, http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, _ = w.Write(body)
			}))
		for body, wanted := range map[string]int{
			`{"message":"hi"}`: status, `{"other":"hi"}`: 200, "": 200, "no JSON": 400, strings.Repeat("x", 2000): 413,
		} {
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, httptest.NewRequest("POST", "/", strings.NewReader(body)))
			if answer.Code != wanted {
				t.Fatalf("%s %.20s: %d", decision, body, answer.Code)
			}
			if answer.Code == 200 && answer.Body.String() != body {
				t.Fatal("the handler did not get the body")
			}
		}
	}
}

func TestMiddlewareWithoutAVerdict(t *testing.T) {
	address, _ := replaying(t, []reply{{Status: 503, Body: json.RawMessage(`{"code":"store_unavailable","detail":"away"}`)}})
	for _, failsOpen := range []bool{false, true} {
		options := []Option{WithBaseURL(address), WithMaxRetries(0)}
		if failsOpen {
			options = append(options, WithFailOpen())
		}
		client, _ := New("k", options...)
		handler := client.Middleware(JSONField("message"), 1000, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest("POST", "/", strings.NewReader(`{"message":"hi"}`)))
		wanted, header := 503, ""
		if failsOpen {
			wanted, header = 200, "failed-open"
		}
		if answer.Code != wanted || answer.Header().Get("Gateway-Guard") != header {
			t.Fatal(failsOpen, answer.Code, answer.Header())
		}
	}
}

func TestPortionsCoverAll(t *testing.T) {
	for _, size := range []int{0, 1, 9_999, 10_000, 10_001, 19_001, 123_456} {
		letters := make([]rune, size)
		for n := range letters {
			letters[n] = rune(0x4E00 + n%20_000)
		}
		whole := ""
		for n, part := range Portions(string(letters)) {
			found := []rune(part)
			if len(found) > textCharsMax {
				t.Fatal(size, len(found))
			}
			if n > 0 {
				found = found[overlapChars:]
			}
			whole += string(found)
		}
		if whole != string(letters) {
			t.Fatal(size)
		}
	}
}
