/* One ring of bytes of plugins/collectives/shm/mailbox.cpp: a sender that finds no room says so and looks once more
 * before it sleeps, a receiver that reads looks at that afterwards; each rings for the other. Sleeps have no end of
 * their own here, so that a ring which is missed is a deadlock.
 *
 * NO_SECOND_LOOK and NO_FULL are faults; with each the model has to find an error.
 */
#define CAPACITY 2
#define BYTES 5
#define SENDER 0
#define RECEIVER 1

byte written, read_; /* of all bytes so far */
byte no_room; /* "full" is a word of spin */
byte content[CAPACITY];
byte rings, sleepers;
bool asleep[2];

inline ring_for(whom) {
  if
  :: sleepers > 0 ->
     rings++;
     asleep[whom] = false
  :: else
  fi
}

inline futex_wait(me) {
  atomic {
    if
    :: rings == seen -> asleep[me] = true
    :: else
    fi
  }
  !asleep[me]
}

/* Writes what there is room for. */
inline push() {
  wrote = false;
  do
  :: written == BYTES -> break
  :: else ->
     free = CAPACITY - (written - read_);
     if
     :: free > 0 ->
        content[written % CAPACITY] = written;
        written++;
        wrote = true
     :: else ->
#ifdef NO_FULL
        break
#else
        if
        :: no_room != 0 -> break
        :: else ->
           no_room = 1;
#ifdef NO_SECOND_LOOK
           break
#endif
        fi
#endif
     fi
  od;
  if
  :: wrote -> ring_for(RECEIVER)
  :: else
  fi
}

active proctype Sender() {
  byte free, seen;
  bool wrote;
  do
  :: written == BYTES -> break
  :: else ->
     push();
     if
     :: written == BYTES -> break
     :: else
     fi;
     sleepers++;
     seen = rings;
#ifndef NO_SECOND_LOOK
     push();
#endif
     if
     :: written == BYTES
     :: else -> futex_wait(SENDER)
     fi;
     sleepers--
  od
}

/* Reads what is there. */
inline take() {
  do
  :: written == read_ -> break
  :: else ->
     assert(content[read_ % CAPACITY] == read_);
     read_++;
     if
     :: no_room != 0 ->
        no_room = 0; /* an exchange */
        ring_for(SENDER)
     :: else
     fi
  od
}

active proctype Receiver() {
  byte seen;
  do
  :: read_ == BYTES -> break
  :: else ->
     take();
     if
     :: read_ == BYTES -> break
     :: else
     fi;
     sleepers++;
     seen = rings;
     take();
     if
     :: read_ == BYTES
     :: else -> futex_wait(RECEIVER)
     fi;
     sleepers--
  od
}
