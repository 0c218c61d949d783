// peers.c - questions over TCP. See peers.h.
#include "peers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "arena.h"
#include "log.h"

enum { AT_ONCE = 128 }; // connections that one peers_ask has open

// Where a rank listens.
typedef struct PeerAddress {
    uint16_t port, n; // n 0: nowhere
    uint32_t ip[PEER_ADDRESSES]; // IPv4, network order
} PeerAddress;

typedef struct Question {
    uint64_t secret;
    int32_t kind, to; // to: an address may lead to another rank's host (bridges have the same one everywhere)
} Question;

struct Peers {
    int rank, nranks;
    int fd; // listening, -1 none
    bool is_deaf;
    uint64_t secret;
    PeerHandler handler;
    PeerAddress *address; // [nranks]
};

// ---- addresses ----------------------------------------------------------------------------------

// own_addresses: of this host's interfaces that are up; the loopback alone if is_one_host.
static void own_addresses(PeerAddress *a, bool is_one_host) {
    struct ifaddrs *all = NULL;
    a->n = 0;
    if (is_one_host) {
        a->ip[a->n++] = htonl(INADDR_LOOPBACK);
        return;
    }
    if (getifaddrs(&all) != 0) return;
    for (struct ifaddrs *i = all; i && a->n < PEER_ADDRESSES; i = i->ifa_next) {
        bool is_up = (i->ifa_flags & IFF_UP) && !(i->ifa_flags & IFF_LOOPBACK);
        if (!is_up || !i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        a->ip[a->n++] = ((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr.s_addr;
    }
    freeifaddrs(all);
}

static int listen_somewhere(PeerAddress *a, bool is_one_host) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    at.sin_addr.s_addr = htonl(is_one_host ? INADDR_LOOPBACK : INADDR_ANY);
    own_addresses(a, is_one_host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), seconds = 1;
    // Connections come with their question: two ranks that ask each other would wait for it, and not send their own.
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 1024) == 0 &&
        getsockname(fd, (struct sockaddr *)&at, &size) == 0 && a->n > 0) {
        a->port = ntohs(at.sin_port);
        return fd;
    }
    if (fd >= 0) close(fd);
    a->n = 0;
    return -1;
}

Err peers_open(Peers **out, Comm *world, bool is_one_host, const PeerHandler *handler) {
    Peers *p = NULL;
    PeerAddress mine = {0};
    MEM_NEW(p, 1);
    p->rank = world->rank;
    p->nranks = world->nranks;
    p->handler = *handler;
    p->fd = world->nranks > 1 ? listen_somewhere(&mine, is_one_host) : -1;
    *out = p;
    MEM_NEW(p->address, world->nranks);
    if (getrandom(&p->secret, sizeof p->secret, 0) != sizeof p->secret) p->secret = (uint64_t)(now_seconds() * 1e9);
    TRY(world->broadcast(world, &p->secret, sizeof p->secret, 0));
    TRY(world->all_gather(world, p->address, &mine, sizeof mine));
    return OK;
}

Err peers_try(Peers *p, Comm *world) {
    bool is_answered = world->nranks == 1, is_refused = false;
    int next = (p->rank + 1) % p->nranks;
    for (int turn = 0; turn < 3 && !is_answered; turn++)
        peers_ask(p, ASK_HELLO, next, 1, 3.0, &is_answered, &is_refused, NULL);
    int64_t is_deaf = !is_answered;
    TRY(comm_max_i64(world, &is_deaf, 1));
    p->is_deaf = is_deaf != 0;
    return OK;
}

bool peers_are_deaf(const Peers *p) {
    return p->is_deaf;
}

void peers_close(Peers **p) {
    if (!*p) return;
    if ((*p)->fd >= 0) close((*p)->fd);
    mem_free((*p)->address);
    mem_free(*p);
    *p = NULL;
}

// ---- answering ----------------------------------------------------------------------------------

// transfer: all n bytes within half a second, or false.
static bool transfer(int fd, void *bytes, size_t n, bool is_read) {
    double end = now_seconds() + 0.5;
    for (size_t done = 0; done < n;) {
        char *at = (char *)bytes + done;
        ssize_t got = is_read ? recv(fd, at, n - done, 0) : send(fd, at, n - done, MSG_NOSIGNAL);
        if (got > 0) {
            done += (size_t)got;
            continue;
        }
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return false;
        struct pollfd wait = {fd, (short)(is_read ? POLLIN : POLLOUT), 0};
        if (now_seconds() > end) return false;
        poll(&wait, 1, 100);
    }
    return true;
}

// answer_one: a connection that waits to be accepted. Returns false if there is none.
static bool answer_one(Peers *p) {
    int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    Question q;
    LedgerState state;
    char ok = 1;
    if (fd < 0) return false;
    bool is_ours = transfer(fd, &q, sizeof q, true) && q.secret == p->secret && q.to == p->rank;
    if (is_ours && q.kind == ASK_STATE) {
        p->handler.state(p->handler.user, &state);
        transfer(fd, &state, sizeof state, false);
    } else if (is_ours) {
        transfer(fd, &ok, sizeof ok, false);
    }
    close(fd);
    if (is_ours && q.kind > ASK_STATE) p->handler.asked(p->handler.user, (PeerQuestion)q.kind);
    return true;
}

void peers_serve(Peers *p, double seconds, const volatile int *stop) {
    double end = now_seconds() + seconds;
    struct pollfd in = {p->fd, POLLIN, 0};
    while (!*stop) {
        int left = (int)((end - now_seconds()) * 1e3);
        if (left <= 0) return;
        int got = poll(&in, p->fd >= 0 ? 1 : 0, left < 200 ? left : 200);
        while (got > 0 && answer_one(p)) {}
    }
}

// ---- asking -------------------------------------------------------------------------------------

// One question under way.
typedef struct Ask {
    int fd, i;        // -1: free; which of the ranks
    int address;      // that is tried
    bool is_sent;     // it is connected, the question has left
    bool is_refused;  // by all addresses so far
    size_t got;       // bytes of the answer
    double end;       // of the wait for this address: half the time to connect, then all of it to answer
} Ask;

typedef struct Round {
    Peers *p;
    PeerQuestion kind;
    int first, n, next; // next to be asked
    double seconds;
    bool *is_answered, *is_refused;
    LedgerState *states;
    char ack[AT_ONCE];
    Ask ask[AT_ONCE];
} Round;

static void hang_up(Ask *a) {
    close(a->fd);
    a->fd = -1;
}

// dial: the next address of the rank; if there is no other, a->fd stays -1.
static void dial(Round *r, Ask *a) {
    const PeerAddress *to = &r->p->address[r->first + a->i];
    a->is_sent = false;
    a->got = 0;
    a->end = now_seconds() + 0.5 * r->seconds;
    for (; a->address < to->n; a->address++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(to->port)};
        at.sin_addr.s_addr = to->ip[a->address];
        a->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (a->fd < 0) return;
        if (connect(a->fd, (struct sockaddr *)&at, sizeof at) == 0 || errno == EINPROGRESS) return;
        a->is_refused = a->is_refused && errno == ECONNREFUSED;
        hang_up(a);
    }
    r->is_refused[a->i] = a->is_refused && to->n > 0;
}

// go_on: what an event means for a question. Returns 1: answered, 0: not yet, -1: this address is none, -2: refused.
static int go_on(const Round *r, Ask *a, void *into, size_t bytes) {
    if (!a->is_sent) {
        int why = 0;
        socklen_t n = sizeof why;
        Question q = {r->p->secret, (int32_t)r->kind, r->first + a->i};
        if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &why, &n) != 0) return -1;
        if (why != 0) return why == ECONNREFUSED ? -2 : -1;
        if (send(a->fd, &q, sizeof q, MSG_NOSIGNAL) != (ssize_t)sizeof q) return -1;
        a->is_sent = true;
        a->end = now_seconds() + r->seconds;
        return 0;
    }
    ssize_t got = recv(a->fd, (char *)into + a->got, bytes - a->got, 0);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (got == 0) return -1;
    a->got += (size_t)got;
    return a->got == bytes ? 1 : 0;
}

// fill: free places take the next ranks. Returns how many questions are under way.
static int fill(Round *r) {
    int busy = 0;
    for (int k = 0; k < AT_ONCE; k++) {
        Ask *a = &r->ask[k];
        while (a->fd < 0 && r->next < r->n) {
            int i = r->next++;
            if (r->is_answered[i] || r->first + i == r->p->rank) continue;
            Ask new = {.fd = -1, .i = i, .is_refused = true};
            *a = new;
            dial(r, a);
        }
        busy += a->fd >= 0;
    }
    return busy;
}

// keep_first: the address that led to an answer is tried first from now on.
static void keep_first(PeerAddress *to, int good) {
    uint32_t ip = to->ip[good];
    to->ip[good] = to->ip[0];
    to->ip[0] = ip;
}

// turn: what became of the question at place k. An address that is silent for too long is left for the next one, as one
// that fails: none has the others' time.
static void turn(Round *r, int k, bool has_event) {
    Ask *a = &r->ask[k];
    void *into = r->states ? (void *)&r->states[a->i] : &r->ack[k];
    int is = has_event ? go_on(r, a, into, r->states ? sizeof *r->states : 1) : 0;
    if (is == 0 && now_seconds() < a->end) return;
    hang_up(a);
    if (is == 1) {
        r->is_answered[a->i] = true;
        keep_first(&r->p->address[r->first + a->i], a->address);
        return;
    }
    a->is_refused = a->is_refused && is == -2;
    a->address++;
    dial(r, a);
}

void peers_ask(Peers *p, PeerQuestion kind, int first, int n, double seconds, bool *is_answered, bool *is_refused,
               LedgerState *states) {
    Round r = {.p = p, .kind = kind, .first = first, .n = n, .seconds = seconds};
    struct pollfd wait[AT_ONCE + 1];
    int place[AT_ONCE];
    r.is_answered = is_answered;
    r.is_refused = is_refused;
    r.states = states;
    if (p->is_deaf) return;
    for (int k = 0; k < AT_ONCE; k++) r.ask[k].fd = -1;
    while (fill(&r) > 0) {
        int m = 0;
        for (int k = 0; k < AT_ONCE; k++) {
            if (r.ask[k].fd < 0) continue;
            struct pollfd one = {r.ask[k].fd, (short)(r.ask[k].is_sent ? POLLIN : POLLOUT), 0};
            place[m] = k;
            wait[m++] = one;
        }
        struct pollfd own = {p->fd, POLLIN, 0};
        wait[m] = own;
        poll(wait, (nfds_t)m + 1, 100);
        if (wait[m].revents) answer_one(p);
        for (int i = 0; i < m; i++) turn(&r, place[i], wait[i].revents != 0);
    }
}
