package guard

import (
	"fmt"
	"strings"
)

// FieldError names a field at fault: a dotted path into the body, empty when all of it is meant.
type FieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// APIError is a problem (RFC 9457) as the gateway told it. Decide by Code, or by Is with one of the
// kinds below: errors.Is(err, guard.ErrRateLimit).
type APIError struct {
	Status    int          `json:"status"`
	Code      string       `json:"code"`
	Title     string       `json:"title"`
	Detail    string       `json:"detail"`
	RequestID string       `json:"request_id"`
	Errors    []FieldError `json:"errors"`
	// RetryAfter is in seconds; negative where the gateway did not say.
	RetryAfter float64 `json:"-"`
	Attempts   int     `json:"-"`
}

func (e *APIError) Error() string {
	lines := []string{fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Detail)}
	for _, one := range e.Errors {
		field := one.Field
		if field == "" {
			field = "body"
		}
		lines = append(lines, "  "+field+": "+one.Message)
	}
	if e.RequestID != "" {
		lines = append(lines, "  request_id: "+e.RequestID)
	}
	return strings.Join(lines, "\n")
}

// Kind is a class of errors, for errors.Is.
type Kind string

func (k Kind) Error() string { return string(k) }

// The kinds.
const (
	ErrConnection       Kind = "the gateway cannot be reached"
	ErrTimeout          Kind = "no answer within the deadline"
	ErrInvalidResponse  Kind = "not an answer of this API: is there a proxy in between?"
	ErrWebhook          Kind = "the event is not to be trusted"
	ErrBatchCancelled   Kind = "the batch was cancelled"
	ErrBadRequest       Kind = "the request cannot be understood"
	ErrAuthentication   Kind = "no key, or not one that works"
	ErrPermissionDenied Kind = "the key may not do that"
	ErrNotFound         Kind = "nothing there, or another workspace's"
	ErrConflict         Kind = "not in a state for that"
	ErrValidation       Kind = "fields are wrong"
	ErrRateLimit        Kind = "a limit is used up"
	ErrServer           Kind = "the gateway's fault, or of what stands behind it"
)

// Is says whether the problem is of a kind.
func (e *APIError) Is(target error) bool {
	kind, ok := target.(Kind)
	return ok && kind == e.kind()
}

func (e *APIError) kind() Kind {
	switch e.Status {
	case 401:
		return ErrAuthentication
	case 403:
		return ErrPermissionDenied
	case 404:
		return ErrNotFound
	case 409, 412:
		return ErrConflict
	case 422:
		return ErrValidation
	case 429:
		return ErrRateLimit
	}
	if e.Status >= 500 {
		return ErrServer
	}
	return ErrBadRequest
}

// failure is an error of a kind that no problem stands behind.
type failure struct {
	kind     Kind
	message  string
	cause    error
	attempts int
}

func (f *failure) Error() string {
	if f.cause != nil {
		return f.message + ": " + f.cause.Error()
	}
	return f.message
}

func (f *failure) Unwrap() error { return f.cause }

func (f *failure) Is(target error) bool {
	// A deadline that is over is one way of not reaching it.
	return target == f.kind || (f.kind == ErrTimeout && target == ErrConnection)
}
