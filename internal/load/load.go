package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lab"
)

// Options say how to write. The zero value has useful defaults.
type Options struct {
	Clients        int           // default 4
	Every          time.Duration // between two rows of a client; default 5 ms; negative: none
	Padding        int           // bytes added to each row
	ConnectTimeout time.Duration // of one attempt, see patience; default 200 ms
	RetryEvery     time.Duration // between attempts to connect; default 40 ms
	AnswerTimeout  time.Duration // for an insert before the connection is given up; default 500 ms
	SyncCommit     string        // synchronous_commit of the clients; default the server's
	Appenders      int           // clients that append to lists and read them; default none
	ProbeEvery     time.Duration // default 50 ms; negative: no prober
	GapOver        time.Duration // gaps longer than this are listed; default 200 ms
	CheckTimeout   time.Duration // for finding a primary to count on at the end; default 30 s
}

func (o *Options) setDefaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if o.Clients == 0 {
		o.Clients = 4
	}
	set(&o.Every, 5*time.Millisecond)
	set(&o.ConnectTimeout, 200*time.Millisecond)
	set(&o.RetryEvery, 40*time.Millisecond)
	set(&o.AnswerTimeout, 500*time.Millisecond)
	set(&o.ProbeEvery, 50*time.Millisecond)
	set(&o.GapOver, 200*time.Millisecond)
	set(&o.CheckTimeout, 30*time.Second)
}

// Run is a load that is under way.
type Run struct {
	lab    *lab.Lab
	o      Options
	begin  time.Time
	base   int // the first client's number in the table
	cancel context.CancelFunc
	wg     sync.WaitGroup

	clients   []*client
	appenders []*appender
	probers   []*prober
	beat      heartbeat

	mu    sync.Mutex
	marks []Mark
}

// Start starts the clients and the prober. It returns when every client has had one
// row acknowledged, so that what is measured afterwards is not their start.
func Start(ctx context.Context, l *lab.Lab, o Options) (*Run, error) {
	o.setDefaults()
	begin := time.Now()
	r := &Run{
		lab: l, o: o, begin: begin,
		// Rows of earlier runs stay in the table.
		base: int(begin.UnixMilli()%20_000_000) * 100,
	}
	if o.Clients > 100 {
		return nil, fmt.Errorf("%d clients: expected 100 at most", o.Clients)
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.cancel = cancel
	first := make(chan struct{}, o.Clients)
	for i := range o.Clients {
		c := &client{run: r, number: r.base + i, errors: map[string]int{}, first: first}
		r.clients = append(r.clients, c)
		r.wg.Go(func() { c.loop(runCtx) })
	}
	for i := range o.Appenders {
		a := &appender{run: r, number: i + 1, errors: map[string]int{}}
		r.appenders = append(r.appenders, a)
		r.wg.Go(func() { a.loop(runCtx) })
	}
	if o.ProbeEvery > 0 {
		for _, n := range l.Names {
			p := &prober{run: r, node: n}
			r.probers = append(r.probers, p)
			r.wg.Go(func() { p.loop(runCtx) })
		}
	}
	r.wg.Go(func() { r.beat.loop(runCtx) })
	for range o.Clients {
		select {
		case <-first:
		case <-ctx.Done():
			cancel()
			r.wg.Wait()
			return nil, fmt.Errorf("the clients could not write through %s: %w; their errors: %s", lab.VIP, ctx.Err(), errorText(r.errors()))
		}
	}
	return r, nil
}

// Mark notes that something happens now: gaps are reported with the mark before them.
func (r *Run) Mark(label string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.marks = append(r.marks, Mark{At: time.Now(), Label: label})
}

// Acknowledged is the number of rows acknowledged so far, and when the last one was.
func (r *Run) Acknowledged() (n int, last time.Time) {
	for _, c := range r.clients {
		c.mu.Lock()
		n += len(c.acked)
		if len(c.acked) > 0 {
			if at := r.begin.Add(c.acked[len(c.acked)-1].at); at.After(last) {
				last = at
			}
		}
		c.mu.Unlock()
	}
	return n, last
}

// AwaitAck waits for a row that is acknowledged after now: the cluster is writable
// through the virtual IP.
func (r *Run) AwaitAck(ctx context.Context) error {
	now := time.Now()
	for {
		if _, last := r.Acknowledged(); last.After(now) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no row was acknowledged since %s: %w; errors so far: %s", now.Format("15:04:05.000"), ctx.Err(), errorText(r.errors()))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop ends the clients, counts the rows on the primary, and reports.
func (r *Run) Stop() Report {
	end := time.Now()
	r.cancel()
	r.wg.Wait()
	return r.report(end)
}

func (r *Run) errors() map[string]int {
	sum := map[string]int{}
	for _, c := range r.clients {
		c.mu.Lock()
		for k, n := range c.errors {
			sum[k] += n
		}
		c.mu.Unlock()
	}
	for _, a := range r.appenders {
		a.mu.Lock()
		for k, n := range a.errors {
			sum[k] += n
		}
		a.mu.Unlock()
	}
	return sum
}

// ack is an acknowledged row. Times count from the run's begin.
type ack struct {
	seq int64
	at  time.Duration
}

// client writes rows one after the other.
type client struct {
	run    *Run
	number int
	first  chan<- struct{}

	mu     sync.Mutex
	sent   int64 // the last sequence number that may be in the table
	acked  []ack // in order of both seq and at
	errors map[string]int
}

func (c *client) loop(ctx context.Context) {
	o := c.run.o
	var conn *pgx.Conn
	wait := patience{least: o.ConnectTimeout}
	padding := strings.Repeat("x", o.Padding)
	drop := func(err error) {
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.errors[Kind(err)]++
		c.mu.Unlock()
		if conn != nil {
			abandon(conn)
			conn = nil
		}
		pause(ctx, o.RetryEvery)
	}
	defer func() {
		if conn != nil {
			abandon(conn)
		}
	}()
	for ctx.Err() == nil {
		if conn == nil {
			var err error
			if conn, err = c.run.connect(ctx, &wait); err != nil {
				drop(err)
				continue
			}
		}
		c.mu.Lock()
		c.sent++
		seq := c.sent
		c.mu.Unlock()
		answer, cancel := context.WithTimeout(ctx, o.AnswerTimeout)
		_, err := conn.Exec(answer, "INSERT INTO written (client, seq, padding) VALUES ($1, $2, $3)", c.number, seq, padding)
		at := time.Since(c.run.begin)
		cancel()
		if err != nil {
			drop(err)
			continue
		}
		c.mu.Lock()
		c.acked = append(c.acked, ack{seq, at})
		isFirst := len(c.acked) == 1
		c.mu.Unlock()
		if isFirst {
			c.first <- struct{}{}
		}
		pause(ctx, o.Every)
	}
}

// patience is how long a client waits for a server that has taken its connection and says nothing: twice as long each time in
// a row, up to mostPatience times the least. On a starved machine clients that always give up after the same time keep it
// starved, since what a server did for them is thrown away each time, and never write again. Where nobody takes the connection
// the least is waited each time: it says how soon a client finds an address that has moved.
type patience struct {
	least time.Duration
	added int // how often it was doubled
}

const mostPatience = 4

func (p *patience) limit() time.Duration { return p.least << p.added }

// learn keeps how an attempt went.
func (p *patience) learn(err error, taken bool) {
	switch {
	case err == nil || !taken:
		p.added = 0
	case Kind(err) == noAnswer && 1<<p.added < mostPatience:
		p.added++
	}
}

// connect opens a connection through the virtual IP from the clients' node.
func (r *Run) connect(ctx context.Context, wait *patience) (conn *pgx.Conn, err error) {
	conf, err := pgx.ParseConfig("host=" + lab.VIP + " user=load dbname=load sslmode=disable application_name=load")
	if err != nil {
		return nil, err
	}
	taken, dial := false, r.lab.DialFrom(lab.Client)
	conf.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, wait.least)
		defer cancel()
		c, err := dial(ctx, network, addr)
		taken = err == nil
		return c, err
	}
	defer func() { wait.learn(err, taken) }()
	if r.o.SyncCommit != "" {
		conf.RuntimeParams["synchronous_commit"] = r.o.SyncCommit
	}
	ctx, cancel := context.WithTimeout(ctx, wait.limit())
	defer cancel()
	return pgx.ConnectConfig(ctx, conf)
}

// abandon closes a connection without waiting for a server that may be gone.
func abandon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_ = conn.Close(ctx)
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

const noAnswer = "no answer in time"

// Kind names an error in a few words: the SQLSTATE and its message if the server said
// one, else what the network said.
func Kind(err error) string {
	var pg *pgconn.PgError
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &pg):
		return pg.Code + " " + pg.Message
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return noAnswer
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed by the server"
	}
	return err.Error()
}
