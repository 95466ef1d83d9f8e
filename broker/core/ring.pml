/* A model of ring.py, stages/atomics.py, doorbell.py and of the loop in runner.py, for spin: every interleaving of a few blocks, with
 * crashes anywhere. tests/endurance/test_ring_model.py checks it; change both sides together.
 *
 * | in the model | in the code |
 * |---|---|
 * | worker | Runner.run, Runner._loop, Ring.publish, Ring.park; capture, W filters that share blocks out, send, flows beside the path |
 * | STEP | an access of what others see; between two of them anybody may go on, and before each the worker may be killed |
 * | cursor, parked, words | what survives a kill: the words of WORKER rows, the two halves of `committed` |
 * | bell | the message in the socket of a worker: at most one (it conflates), gone with the process |
 * | buffer | the store buffer of x86: a store of cursor or `parked` reaches memory later, or at a fence, a locked instruction, the next
 * |        | store, or when the process dies; what was stored before it has arrived by then |
 * | asleep | in bell.wait; without LIMIT nothing but the bell ends it |
 *
 * What must hold, in every state:
 * - who reads a block finds it whole and of the number that it expects, and nobody writes it meanwhile;
 * - a worker that starts finds the counts of exactly the blocks below its cursor, and so does who looks from outside (LEDGER);
 * - no worker commits a block twice or leaves one out;
 * - nobody sleeps whose block is there, unless a ring is under way: somebody is between his cursor and the bell, or is dead and will ring
 *   when he starts (`owes`). So no wake-up depends on the limit of 100 ms;
 * - without the limit all runs end with all blocks done (no invalid end state); with it they do under weak fairness (-DLIMIT -a -f).
 *
 * One case needs the limit: STALE_CORD. A ring that the sender's I/O thread writes to the socket of a reader that has died, before it
 * learns of that, is lost, and the next life of the reader may be the one that was meant. That takes an I/O thread that does not run
 * while a worker dies and is started again (milliseconds): the sleeper then wakes by the limit, 100 ms late.
 *
 * Left out: waiting for the source (a descriptor ends that, not a neighbour), stages that ask to be called again (they look again by
 * themselves), encapsulate (it is to the filter what the filter is to capture). Cursors are 64 bits and never wrap; slots and halves do.
 *
 * BREAK_* leaves something out that must not be: each is found.
 *
 *     spin -DTOTAL=4 -a ring.pml && gcc -O2 -w -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m100000
 *
 * and after an error `spin -DTOTAL=4 -t -p -g ring.pml` prints the way to it.
 */

#ifndef N
#define N 2 /* blocks of the ring */
#endif
#ifndef W
#define W 2 /* filter workers */
#endif
#ifndef TOTAL
#define TOTAL 5 /* blocks until the source ends */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

#define CAPTURE 0
#define SEND (W + 1)
#ifdef FLOWS_BESIDE
#define FLOWS (W + 2)
#define ROWS (W + 3)
#else
#define ROWS (W + 2)
#endif

#define IS_FILTER(r) ((r) > CAPTURE && (r) < SEND)
#define FILTER_OF(block) (1 + (block) % W)
#define STRIDE(r) (IS_FILTER(r) -> W : 1)
#define BLOCKS(r, at) (IS_FILTER(r) -> ((at) - ((r) - 1)) / W : (at)) /* done by worker r when its cursor is `at` */
#define HALF(r, at) (((at) / STRIDE(r)) & 1)
#define LAG(r) ((r) == CAPTURE -> N : 0) /* capture waits for a slot: for who is a lap behind */

byte cursor[ROWS], parked[ROWS];
typedef Halves { byte first[2]; byte last[2] }; /* the first and the last counter of each half: the copy takes time */
Halves words[ROWS];
byte made[N], judged[N]; /* columns of capture and filter: the number of the block, plus 1 */
bit torn[N];             /* capture is in the middle of it */

bit bell[ROWS], up[ROWS]; /* up: the socket is bound */
byte crashes, finished;

#define NONE 0
#define CURSOR 1
#define PARKED 2
byte buffer[ROWS], buffered[ROWS];

/* Of the proof only. */
byte readers[N], want[ROWS], handled[ROWS];
bit asleep[ROWS], owes[ROWS];
#ifdef STALE_CORD
bit stale[ROWS];
#endif

#ifdef FLOWS_BESIDE
#define FREED(at) (cursor[SEND] >= (at) && cursor[FLOWS] >= (at))
#define OWED_TO_CAPTURE (owes[SEND] || owes[FLOWS])
#else
#define FREED(at) (cursor[SEND] >= (at))
#define OWED_TO_CAPTURE (owes[SEND])
#endif
#if W == 1
#define OWED_BY_FILTERS (owes[1])
#else
#define OWED_BY_FILTERS (owes[1] || owes[2])
#endif
#define OVERSLEEPS(r, reached, owed) (asleep[r] && !bell[r] && (reached) && !(owed))
#ifdef FLOWS_BESIDE
#define FLOWS_OVERSLEEPS OVERSLEEPS(FLOWS, cursor[CAPTURE] >= want[FLOWS], owes[CAPTURE])
#else
#define FLOWS_OVERSLEEPS false
#endif
#ifdef LIMIT
#define NOBODY_OVERSLEEPS skip
#else
#define NOBODY_OVERSLEEPS \
    assert(!OVERSLEEPS(CAPTURE, FREED(want[CAPTURE]), OWED_TO_CAPTURE)); \
    assert(!OVERSLEEPS(1, cursor[CAPTURE] >= want[1], owes[CAPTURE])); \
    assert(W == 1 || !OVERSLEEPS(W, cursor[CAPTURE] >= want[W], owes[CAPTURE])); \
    assert(!OVERSLEEPS(SEND, cursor[FILTER_OF(want[SEND] - 1)] >= want[SEND], OWED_BY_FILTERS)); \
    assert(!FLOWS_OVERSLEEPS)
#endif

#define DRAIN(r) \
    if \
    :: buffer[r] == CURSOR -> cursor[r] = buffered[r] \
    :: buffer[r] == PARKED -> parked[r] = buffered[r] \
    :: else \
    fi; \
    buffer[r] = NONE; buffered[r] = 0
#define STORE(what, value) DRAIN(me); buffer[me] = what; buffered[me] = value
/* A store whose fence follows at once is one step: the worker itself does nothing in between. */
#ifdef BREAK_NO_FENCE_IN_PUBLISH
#define FENCE_IN_PUBLISH skip
#else
#define FENCE_IN_PUBLISH DRAIN(me)
#endif
#ifdef BREAK_NO_FENCE_IN_PARK
#define FENCE_IN_PARK skip
#else
#define FENCE_IN_PARK DRAIN(me)
#endif
#define STEP(what) if :: d_step { what } :: d_step { crashes < CRASHES -> crashes++ } -> goto died fi

/* The store buffers empty when they like. */
proctype memory()
{
end:
    do
    :: d_step { buffer[CAPTURE] != NONE -> DRAIN(CAPTURE); NOBODY_OVERSLEEPS }
    :: d_step { buffer[1] != NONE -> DRAIN(1); NOBODY_OVERSLEEPS }
    :: d_step { buffer[W] != NONE -> DRAIN(W); NOBODY_OVERSLEEPS }
    :: d_step { buffer[SEND] != NONE -> DRAIN(SEND); NOBODY_OVERSLEEPS }
    :: d_step { buffer[ROWS - 1] != NONE -> DRAIN(ROWS - 1); NOBODY_OVERSLEEPS }
    od
}

/* Whom a worker waits for, and whom it may wake, at the block in hand. */
#define BEFORE (me == CAPTURE -> SEND : (me == SEND -> FILTER_OF(seq) : CAPTURE))
#define AFTER (me == CAPTURE -> FILTER_OF(seq) : (IS_FILTER(me) -> SEND : CAPTURE))
#define FIRST_AFTER (me == CAPTURE -> 1 : (IS_FILTER(me) -> SEND : CAPTURE))
#define SLOT (seq % N)

/* is_ready. What it remembers of an earlier look is left out: cursors only grow, so a second look finds as much. */
#ifdef BREAK_NO_WRAP_CHECK
#define OPEN_TO_CAPTURE true
#else
#define OPEN_TO_CAPTURE false
#endif
#define LOOK_AT(row) ok = (cursor[row] + LAG(me) > seq || (me == CAPTURE && OPEN_TO_CAPTURE))
#ifdef FLOWS_BESIDE
#define LOOK STEP(LOOK_AT(BEFORE)); if :: me == CAPTURE && ok -> STEP(LOOK_AT(FLOWS)) :: else fi
#else
#define LOOK STEP(LOOK_AT(BEFORE))
#endif

/* _take_sleeper: an announcement that is reached is taken back by whoever will ring. */
#define TAKE_SLEEPER(row, taken) \
    STEP(found = parked[row]); \
    if \
    :: found != 0 && found <= seq + 1 -> STEP(DRAIN(me); taken = (parked[row] == found); if :: taken -> parked[row] = 0 :: else fi) \
    :: else \
    fi; \
    found = 0

#ifdef STALE_CORD
#define RING(row) if :: stale[row] -> STEP(stale[row] = 0) :: STEP(bell[row] = up[row]) fi
#else
#define RING(row) STEP(bell[row] = up[row])
#endif

#ifdef BREAK_ONE_HALF
#define COPY(word) words[me].word[0] = count + 1; words[me].word[1] = count + 1
#else
#define COPY(word) words[me].word[HALF(me, seq + STRIDE(me))] = count + 1
#endif

#if defined(LEDGER) || defined(BREAK_CURSOR_BEFORE_COUNTS)
#define COPY_IN_STEP skip
#else
#define COPY_IN_STEP COPY(first); COPY(last)
#endif

/* Stage.step. It has the block from the look that found it ready until its cursor goes on: that is longer than it touches it. Its counters go
 * to their half by and by, which nobody but LEDGER looks at before the cursor says so. */
#define BEGIN \
    if \
    :: d_step { me == CAPTURE -> assert(readers[SLOT] == 0); torn[SLOT] = 1 } \
    :: d_step { me != CAPTURE -> READ; readers[SLOT]++; working = 1 } \
    fi
#define READ \
    assert(!torn[SLOT] && made[SLOT] == seq + 1); \
    assert(me != SEND || judged[SLOT] == seq + 1)
#ifdef BREAK_CURSOR_BEFORE_DATA
#define WRITE skip
#else
#define WRITE made[SLOT] = seq + 1; torn[SLOT] = 0
#endif
#define END \
    if \
    :: me == CAPTURE -> assert(readers[SLOT] == 0); WRITE \
    :: else -> READ; if :: IS_FILTER(me) -> judged[SLOT] = seq + 1 :: else fi; readers[SLOT]--; working = 0 \
    fi; \
    COPY_IN_STEP

/* Each atomic is one STEP and what the worker does with it by itself, which nobody else sees. */
proctype worker(byte me)
{
    byte seq, count, found;
    bit ok, ring_after, ring_beside, working;

    seq = cursor[me];
    goto loop; /* everybody's first life has begun: who has not begun yet is one that has died there */

start: /* Ring.__init__: the place and its counts are in shared memory */
    skip;
    atomic {
        seq = cursor[me];
        count = words[me].first[HALF(me, seq)];
        assert(count == BLOCKS(me, seq) && words[me].last[HALF(me, seq)] == count);
        STEP(STORE(PARKED, 0); DRAIN(me)) /* the one before me may have died in its sleep */
    }
    atomic { STEP(up[me] = 1) }; /* Doorbell */
#ifndef BREAK_NO_RING_AT_START
    /* Runner._ring_neighbours: the one before me may have died between its cursor and the bell */
    atomic { RING(FIRST_AFTER) }
#if W > 1
    atomic { if :: me == CAPTURE -> RING(2) :: else fi }
#endif
#ifdef FLOWS_BESIDE
    atomic { if :: me == CAPTURE -> RING(FLOWS) :: else fi }
#endif
#endif
    d_step { owes[me] = 0; NOBODY_OVERSLEEPS }

loop:
    atomic {
        if :: seq >= TOTAL -> goto finish :: else fi;
        LOOK;
        if :: !ok -> goto park :: else -> ok = 0 fi;
        BEGIN
    }

    /* Ring.publish */
#ifdef LEDGER
    atomic { STEP(COPY(first)) }
    atomic { STEP(COPY(last)) }
#endif
    atomic {
        STEP(
            END;
            assert(handled[me] == BLOCKS(me, seq));
            handled[me]++;
            owes[me] = 1;
            STORE(CURSOR, seq + STRIDE(me));
            FENCE_IN_PUBLISH
        )
    }
#ifdef BREAK_CURSOR_BEFORE_COUNTS
    atomic { STEP(DRAIN(me); COPY(first); COPY(last)) }
#endif
#ifdef BREAK_CURSOR_BEFORE_DATA
    atomic { if :: me == CAPTURE -> STEP(made[SLOT] = seq + 1; torn[SLOT] = 0; COPY_IN_STEP) :: else fi }
#endif
#ifdef FLOWS_BESIDE
    atomic { if :: me == CAPTURE -> TAKE_SLEEPER(FLOWS, ring_beside) :: else fi }
#endif
    atomic {
        TAKE_SLEEPER(AFTER, ring_after);
        if :: ring_after || ring_beside -> goto ring :: else fi;
published:
        owes[me] = 0;
        NOBODY_OVERSLEEPS;
        seq = seq + STRIDE(me);
        count++
    }
    goto loop;

ring:
    skip;
    atomic { if :: ring_after -> RING(AFTER); ring_after = 0 :: else fi }
#ifdef FLOWS_BESIDE
    atomic { if :: ring_beside -> RING(FLOWS); ring_beside = 0 :: else fi }
#endif
    goto published;

park: /* Ring.park: capture asks for half of the ring */
    skip;
    atomic { STEP(want[me] = seq + 1 - LAG(me) + (me == CAPTURE -> N / 2 : 0); STORE(PARKED, want[me]); FENCE_IN_PARK) }
    atomic {
#ifndef BREAK_NO_SECOND_LOOK
        LOOK;
        if :: ok -> goto unpark :: else fi;
#endif
        asleep[me] = 1;
        NOBODY_OVERSLEEPS
    }
    if /* Doorbell.wait */
    :: d_step { bell[me] -> bell[me] = 0; asleep[me] = 0 }
#ifdef LIMIT
    :: d_step { asleep[me] = 0 }
#endif
    :: d_step { crashes < CRASHES -> crashes++ } -> goto died
    fi;
unpark:
    skip;
    atomic { STEP(STORE(PARKED, 0); DRAIN(me); want[me] = 0); ok = 0 }
    goto loop;

died: /* what it stored arrives; its socket and what was in it are gone */
    atomic {
        DRAIN(me);
        bell[me] = 0; up[me] = 0; asleep[me] = 0; want[me] = 0; owes[me] = 1;
#ifdef STALE_CORD
        stale[me] = 1;
#endif
        if :: working -> readers[SLOT]-- :: else fi;
        handled[me] = BLOCKS(me, cursor[me]);
        seq = 0; count = 0; found = 0; ok = 0; ring_after = 0; ring_beside = 0; working = 0;
        NOBODY_OVERSLEEPS
    }
    goto start;

finish:
    atomic {
        DRAIN(me);
        assert(words[me].first[HALF(me, seq)] == BLOCKS(me, cursor[me]) && handled[me] == BLOCKS(me, cursor[me]));
        finished++;
        seq = 0; count = 0;
        NOBODY_OVERSLEEPS
    }
}

#ifdef LEDGER
/* read_counters of one worker, by the supervisor. */
proctype ledger()
{
    byte r, at, first, last;
    select(r : 0 .. ROWS - 1);
    at = cursor[r];
    first = words[r].first[HALF(r, at)];
    last = words[r].last[HALF(r, at)];
#ifdef BREAK_LEDGER_LOOKS_ONCE
    if
    :: true ->
#else
    if
    :: cursor[r] == at ->
#endif
        assert(first == BLOCKS(r, at) && last == first)
    :: else /* again; that is another run of this process */
    fi
}
#endif

init
{
    atomic {
        byte r = 0;
        do
        :: r < ROWS ->
            cursor[r] = (IS_FILTER(r) -> r - 1 : 0);
            up[r] = 1;
            run worker(r);
            r++
        :: else -> break
        od;
        run memory();
#ifdef LEDGER
        run ledger();
#endif
        r = 0
    }
}

#ifdef PROGRESS
ltl all_is_done { <> (finished == ROWS) }
#endif
