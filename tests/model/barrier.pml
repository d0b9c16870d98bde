/* The barrier of plugins/collectives/shm/shared_memory_barrier.cpp over the bell of bell.h: ranks that note where they
 * are, wait for the others, and sleep until the last one rings. Sleeps have no end of their own here, so that a ring
 * which is missed is a deadlock. With GIVE_UP one rank may give up, and the others have to hear of it.
 *
 * LATE_COUNT, LATE_LOOK and EARLY_RING are faults; with each the model has to find an error.
 */
#define N 3
#ifdef GIVE_UP
#define TURNS 2
#else
#define TURNS 3 /* so that the place of a mark is used again */
#endif

byte arrived[N];
byte mark[6]; /* by the parity of the turn, then by rank */
byte rings, sleepers;
bool asleep[N];
bool gave_up;

inline ring() {
  if
  :: sleepers > 0 ->
     rings++;
     atomic { asleep[0] = false; asleep[1] = false; asleep[2] = false }
  :: else
  fi
}

/* The system compares the word and puts to sleep in one step. */
inline futex_wait() {
  atomic {
    if
    :: rings == seen -> asleep[me] = true
    :: else
    fi
  }
  !asleep[me]
}

inline sleep_until(ready) {
#ifdef LATE_COUNT
  seen = rings;
  if
  :: ready
  :: else -> sleepers++; futex_wait(); sleepers--
  fi
#else
  sleepers++;
#ifdef LATE_LOOK
  if
  :: ready
  :: else -> seen = rings; futex_wait()
  fi;
#else
  seen = rings;
  if
  :: ready
  :: else -> futex_wait()
  fi;
#endif
  sleepers--
#endif
}

proctype Rank(byte me) {
  byte turn = 1, other, seen;
  bool waited;
  do
  :: turn > TURNS -> break
  :: else ->
#ifdef GIVE_UP
     if
     :: me == 0 && turn == 2 -> /* too long a wait ends here instead */
        gave_up = true;
        ring();
        goto ended
     :: skip
     fi;
#endif
#ifdef EARLY_RING
     ring();
#endif
     mark[(turn % 2) * N + me] = turn;
     arrived[me] = turn;
     waited = false;
     other = 0;
     do
     :: other == N -> break
     :: else ->
        do
        :: arrived[other] >= turn -> break
        :: else ->
           waited = true;
#ifdef GIVE_UP
           if
           :: gave_up -> goto ended
           :: else
           fi;
#endif
           if
           :: skip /* spins */
           :: sleep_until(arrived[other] >= turn || gave_up)
           fi
        od;
        assert(mark[(turn % 2) * N + other] == turn);
        other++
     od;
#ifndef EARLY_RING
     if
     :: !waited -> ring()
     :: else
     fi;
#endif
     turn++
  od;
ended:
  skip
}

init {
  atomic {
    run Rank(0);
    run Rank(1);
    run Rank(2)
  }
}
