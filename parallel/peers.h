// peers.h - how the watchdogs of the ranks talk: short questions over TCP, each on a connection of its own, asked of
// many at once while others' questions are answered.
//
// Everything here is Local but for peers_open.
#pragma once
#include "ledger.h"

enum { PEER_ADDRESSES = 4 };

typedef enum PeerQuestion {
    ASK_HELLO, // are you there?
    ASK_STATE, // what are you in?  A LedgerState.
    ASK_LEAD,  // something stands still: do you look into it?  Nothing but an answer.
    ASK_END    // the job is over, end your process.  An answer, then it ends.
} PeerQuestion;

typedef struct Peers Peers;

// What a rank answers with; called by whoever is in peers_ask or peers_serve.
typedef struct PeerHandler {
    void (*state)(void *user, LedgerState *out);
    void (*asked)(void *user, PeerQuestion question); // ASK_LEAD, ASK_END: after the answer has left
    void *user;
} PeerHandler;

// peers_open: listen on a port of its own, on the loopback interface only if is_one_host, and tell all ranks the
// addresses and the job's secret, without which no question is answered. Errors: of the group. Collective over the
// world.
Err peers_open(Peers **out, Comm *world, bool is_one_host, const PeerHandler *handler) MUST_CHECK;
// peers_try: every rank asks the next one whether it is there, while threads serve. From then on peers_are_deaf says
// whether there was one without an answer; questions are not even tried then. Collective over the world.
Err peers_try(Peers *p, Comm *world) MUST_CHECK;
bool peers_are_deaf(const Peers *p);
void peers_close(Peers **p);

// peers_serve: answer others for at most `seconds`, or until *stop.
void peers_serve(Peers *p, double seconds, const volatile int *stop);
// peers_ask: the question to ranks first..first+n-1, many at once. Each address of a rank, one after the other, has
// half of `seconds` to connect and then `seconds` to answer; the one that answered comes first the next time.
// is_answered [n]: rank first+i did. is_refused [n]: all its addresses say that nothing listens there any more. states
// [n] for ASK_STATE, else NULL. Ranks with is_answered set already are not asked.
void peers_ask(Peers *p, PeerQuestion question, int first, int n, double seconds, bool *is_answered, bool *is_refused,
               LedgerState *states);
