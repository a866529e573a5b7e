package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
)

// Extract takes from a request what is to be judged; its body may be read. No text: it passes. With
// an error it is answered 400.
type Extract func(request *http.Request, body []byte) ([]string, error)

var (
	errNotJSON = errors.New("The body is no JSON that can be read.")
	errMany    = errors.New("At most 1,000 texts are taken at a time.")
	nameOnly   = regexp.MustCompile(`^[\w.$-]{1,64}$`)
	opaque     = regexp.MustCompile(`^[!-~]*$`)
	// Places of pictures, and of what an API sealed.
	sealed = setOf("image_url input_audio file_data fileData inlineData inline_data blob data url signature encrypted_content thoughtSignature")
	// Places of ids and of names of an API.
	labels = setOf("type id name role model object status format detail index created usage logprobs finish_reason stop_reason finishReason cache_control media_type mimeType mime_type annotations citations parsed parsed_arguments")
)

const (
	labelCharsMax = 64
	textsMax      = 1_000
)

func setOf(names string) map[string]bool {
	found := map[string]bool{}
	for _, name := range strings.Fields(names) {
		found[name] = true
	}
	return found
}

// JSONField judges all texts in one field of a JSON body, such as "message", whatever the body's type
// says. Names are compared as encoding/json compares them, without regard to case, and each of several
// equal ones counts: a handler may read any. Pictures and ids in it are left out, as long as they can
// be no sentence; a body that is no object is judged whole, and one that is no JSON is 400.
func JSONField(name string) Extract {
	return func(_ *http.Request, body []byte) ([]string, error) {
		body = bytes.TrimPrefix(body, []byte("\ufeff"))
		if len(bytes.TrimSpace(body)) == 0 {
			return nil, nil
		}
		if !json.Valid(body) { // which also bounds how deep it is
			return nil, errNotJSON
		}
		found := reader{decoder: json.NewDecoder(bytes.NewReader(body)), field: name, known: map[string]bool{}}
		found.decoder.UseNumber()
		found.read("", 0, false)
		if len(found.texts) > textsMax {
			return nil, errMany
		}
		return found.texts, nil
	}
}

// reader goes through valid JSON token by token: a map would keep one of several equal names.
type reader struct {
	decoder *json.Decoder
	field   string
	known   map[string]bool
	texts   []string
}

func (r *reader) read(name string, depth int, isMeant bool) {
	token, err := r.decoder.Token()
	if err != nil {
		return
	}
	isMeant = isMeant || depth == 0 && token != json.Delim('{')
	switch one := token.(type) {
	case string:
		if isMeant && !isLabel(name, one) {
			r.add(one)
		}
	case json.Delim:
		for r.decoder.More() {
			under, isUnder := name, isMeant
			if one == '{' {
				key, _ := r.decoder.Token()
				under, _ = key.(string)
				if isMeant && !nameOnly.MatchString(under) {
					r.add(under)
				}
				if depth == 0 && strings.EqualFold(under, r.field) {
					under, isUnder = "", true
				}
			}
			r.read(under, depth+1, isUnder)
		}
		_, _ = r.decoder.Token() // its end
	}
}

func (r *reader) add(text string) {
	if strings.TrimSpace(text) != "" && !r.known[text] {
		r.known[text] = true
		r.texts = append(r.texts, text)
	}
}

func isLabel(name, text string) bool {
	if !opaque.MatchString(text) {
		return false
	}
	isPlace := labels[name] || strings.HasSuffix(name, "_id")
	return sealed[name] || isPlace && len(text) <= labelCharsMax
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
// Gateway-Guard: failed-open. Bodies above bodyMax bytes are 413, those that extract cannot read 400.
func (c *Client) Middleware(extract Extract, bodyMax int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(writer, request.Body, bodyMax))
		if err != nil {
			refuse(writer, http.StatusRequestEntityTooLarge, "body_too_large", "The body is too large.")
			return
		}
		texts, err := extract(request, body)
		if err != nil {
			refuse(writer, http.StatusBadRequest, "body_not_readable", err.Error())
			return
		}
		for _, text := range texts {
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
