package main

import (
	"context"
	"fmt"
	"time"
)

type statusCmd struct{}

func (statusCmd) Run(ctx context.Context, c *common) error {
	l, err := c.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Print(l.Describe(ctx, s))
	return nil
}
