package baton

import (
	"errors"
	"fmt"
)

var errNoNote = errors.New("no primary left a note of how it ended")

// UsedUpError says that a note cannot serve for a promotion any more.
type UsedUpError struct {
	Note Note
	By   Claim
}

func (e *UsedUpError) Error() string {
	return fmt.Sprintf("the note %s left at %s was used up by the claim of %s", e.Note.Node, e.Note.End, e.By)
}
