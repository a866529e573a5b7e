package guard

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
)

// Extract takes from a request what is to be judged; its body may be read. No text: it passes.
type Extract func(request *http.Request, body []byte) []string

// JSONField judges one string field of a JSON body, such as "message".
func JSONField(name string) Extract {
	return func(_ *http.Request, body []byte) []string {
		var fields map[string]any
		if json.Unmarshal(body, &fields) != nil {
			return nil
		}
		if text, ok := fields[name].(string); ok && text != "" {
			return []string{text}
		}
		return nil
	}
}

const (
	textCharsMax = 10_000 // what the gateway takes at a time
	overlapChars = 1_000
)

// Portions cuts a text into what the gateway takes; they overlap, so that no attack hides on the edge.
func Portions(text string) []string {
	letters := []rune(text)
	if len(letters) <= textCharsMax {
		return []string{text}
	}
	var found []string
	for at := 0; at < len(letters)-overlapChars; at += textCharsMax - overlapChars {
		found = append(found, string(letters[at:min(at+textCharsMax, len(letters))]))
	}
	return found
}

// Middleware has each request's texts judged before next sees it, and answers 403 to what is
// flagged. Without a verdict it answers 503, unless the client fails open: then the answer says
// Gateway-Guard: failed-open. Bodies above bodyMax bytes are 413.
func (c *Client) Middleware(extract Extract, bodyMax int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, bodyMax))
		if err != nil {
			refuse(writer, http.StatusRequestEntityTooLarge, "body_too_large", "The body is too large.")
			return
		}
		for _, text := range extract(request, body) {
			for _, part := range Portions(text) {
				verdict, err := c.Detect(request.Context(), part)
				if err != nil {
					refuse(writer, http.StatusServiceUnavailable, "no_verdict", "This cannot be checked right now. Try again.")
					return
				}
				if verdict.FailedOpen {
					writer.Header().Set("Gateway-Guard", "failed-open")
				}
				if verdict.Flagged() {
					refuse(writer, http.StatusForbidden, "prompt_injection", "This looks like an attempt to change the instructions. Leave it out (request "+verdict.RequestID+").")
					return
				}
			}
		}
		request.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(writer, request)
	})
}

func refuse(writer http.ResponseWriter, status int, code, detail string) {
	writer.Header().Set("Content-Type", "application/problem+json")
	writer.WriteHeader(status)
	_ = json.NewEncoder(writer).Encode(map[string]any{"status": status, "code": code, "detail": detail})
}
