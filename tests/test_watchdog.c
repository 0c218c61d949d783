// test_watchdog.c - how the watchdogs' threads of real ranks reach each other: over hosts' addresses that lead nowhere
// or to somebody else, and when most ranks are stopped.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "peers.h"
#include "rank_tests.h"
#include "watchdog.h"

// ---- a host whose addresses are what a test says ------------------------------------------------

#define NOWHERE "192.0.2.1" // packets are lost
#define REFUSES "192.0.2.2" // nothing listens
#define MYSELF "192.0.2.3"  // like a bridge that has the same address on every host

static const char *const *names; // of this host's addresses, NULL: the true ones
static uint16_t own_port;        // the last that this process listened on
static int full[2] = {-1, -1};   // a listener whose queue is full, which drops all that connect; who fills it

int getifaddrs(struct ifaddrs **out) {
    static struct ifaddrs list[PEER_ADDRESSES + 1];
    static struct sockaddr_in at[PEER_ADDRESSES + 1];
    int (*true_one)(struct ifaddrs **) = (int (*)(struct ifaddrs **))dlsym(RTLD_NEXT, "getifaddrs");
    if (!names) return true_one(out);
    for (int i = 0; names[i]; i++) {
        at[i] = (struct sockaddr_in){.sin_family = AF_INET};
        inet_pton(AF_INET, names[i], &at[i].sin_addr);
        list[i] = (struct ifaddrs){.ifa_next = names[i + 1] ? &list[i + 1] : NULL,
                                   .ifa_flags = IFF_UP,
                                   .ifa_addr = (struct sockaddr *)&at[i]};
    }
    *out = list;
    return 0;
}

void freeifaddrs(struct ifaddrs *list) {
    void (*true_one)(struct ifaddrs *) = (void (*)(struct ifaddrs *))dlsym(RTLD_NEXT, "freeifaddrs");
    if (!names) true_one(list);
}

int listen(int fd, int backlog) {
    struct sockaddr_in at;
    socklen_t n = sizeof at;
    int rc = (int)syscall(SYS_listen, fd, backlog);
    if (rc == 0 && getsockname(fd, (struct sockaddr *)&at, &n) == 0 && at.sin_family == AF_INET)
        own_port = ntohs(at.sin_port);
    return rc;
}

static struct sockaddr_in loopback(uint16_t port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return at;
}

static uint16_t port_of(int fd) {
    struct sockaddr_in at;
    socklen_t n = sizeof at;
    getsockname(fd, (struct sockaddr *)&at, &n);
    return ntohs(at.sin_port);
}

int connect(int fd, const struct sockaddr *to, socklen_t n) {
    struct sockaddr_in at;
    char name[INET_ADDRSTRLEN] = "";
    if (to->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)to)->sin_addr, name, sizeof name);
    if (strcmp(name, NOWHERE) == 0) at = loopback(port_of(full[0]));
    else if (strcmp(name, REFUSES) == 0) at = loopback(1);
    else if (strcmp(name, MYSELF) == 0) at = loopback(own_port);
    else return (int)syscall(SYS_connect, fd, to, n);
    return (int)syscall(SYS_connect, fd, &at, sizeof at);
}

static void make_nowhere(void) {
    struct sockaddr_in at = loopback(0);
    for (int i = 0; i < 2; i++) full[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(bind(full[0], (struct sockaddr *)&at, sizeof at) == 0 && syscall(SYS_listen, full[0], 0) == 0);
    at = loopback(port_of(full[0]));
    EXPECT(syscall(SYS_connect, full[1], &at, sizeof at) == 0);
}

// ---- questions ----------------------------------------------------------------------------------

typedef struct Server {
    Peers *peers;
    volatile int stop;
    pthread_t thread;
} Server;

static void state_of(void *user, LedgerState *out) {
    (void)user;
    memset(out, 0, sizeof *out);
    out->is_known = true;
    out->rank = boot.rank;
}

static void asked(void *user, PeerQuestion question) {
    (void)user;
    (void)question;
}

static void *serve(void *user) {
    Server *s = user;
    while (!s->stop) peers_serve(s->peers, 1.0, &s->stop);
    return NULL;
}

static void serve_start(Server *s, const char *const *addresses) {
    PeerHandler handler = {state_of, asked, NULL};
    s->stop = 0;
    names = addresses;
    MUST(peers_open(&s->peers, boot.world, false, &handler));
    names = NULL;
    EXPECT(pthread_create(&s->thread, NULL, serve, s) == 0);
    MUST(boot.world->barrier(boot.world));
}

static void serve_stop(Server *s) {
    MUST(boot.world->barrier(boot.world));
    s->stop = 1;
    pthread_join(s->thread, NULL);
    peers_close(&s->peers);
}

// ask_all: how many others said what they are; returns the seconds it took.
static double ask_all(Server *s, int *n) {
    bool is_answered[64] = {0}, is_refused[64] = {0};
    static LedgerState states[64];
    double t0 = now_seconds();
    *n = 0;
    peers_ask(s->peers, ASK_STATE, 0, boot.nranks, 2.0, is_answered, is_refused, states);
    for (int i = 0; i < boot.nranks; i++) {
        if (is_answered[i]) EXPECT(states[i].rank == i && i != boot.rank);
        *n += is_answered[i];
    }
    return now_seconds() - t0;
}

// Each address has a time of its own, and the good one is remembered.
static void test_addresses(void) {
    static const char *const lists[][4] = {{"127.0.0.1", NULL},
                                           {REFUSES, "127.0.0.1", NULL},
                                           {NOWHERE, "127.0.0.1", NULL},
                                           {MYSELF, "127.0.0.1", NULL},
                                           {NOWHERE, MYSELF, "127.0.0.1", NULL}};
    for (int i = 0; i < 5; i++) {
        Server s;
        int n = 0;
        serve_start(&s, lists[i]);
        ask_all(&s, &n);
        EXPECT(n == boot.nranks - 1);
        EXPECT(ask_all(&s, &n) < 0.9); // not the second that it takes to give up the address to nowhere
        EXPECT(n == boot.nranks - 1);
        serve_stop(&s);
    }
}

// Nothing listens at any address: the process is gone. Silence at one of them: perhaps it is there.
static void test_refused(void) {
    static const char *const lists[][3] = {
        {REFUSES, REFUSES, NULL}, {REFUSES, NOWHERE, NULL}, {NOWHERE, REFUSES, NULL}};
    for (int i = 0; i < 3; i++) {
        Server s;
        bool is_answered[64] = {0}, is_refused[64] = {0};
        serve_start(&s, lists[i]);
        peers_ask(s.peers, ASK_HELLO, 0, boot.nranks, 1.0, is_answered, is_refused, NULL);
        for (int r = 0; r < boot.nranks; r++) {
            EXPECT(!is_answered[r]);
            EXPECT(is_refused[r] == (i == 0 && r != boot.rank));
        }
        serve_stop(&s);
    }
}

// ---- most ranks are stopped ---------------------------------------------------------------------

static int64_t pids[64];
static volatile double said; // when the sentence came

static void say(void *user, bool is_hang, const char *text) {
    (void)user;
    (void)text;
    if (is_hang) said = now_seconds();
}

// end: whoever found out lets the others go on. Ends the thread only: the test goes on.
static void end(void *user) {
    (void)user;
    for (int i = 0; said > 0.0 && i < boot.nranks; i++)
        if (i != boot.rank) kill((pid_t)pids[i], SIGCONT);
    pthread_exit(NULL);
}

// All ranks but the last are stopped: it asks them together, so that it speaks after a few waits and not one for each.
static void test_many_stopped(void) {
    Ledger *ledger = NULL;
    Watchdog *w = NULL;
    WatchdogSpec spec = {.is_one_host = true, .say = say, .end = end};
    int64_t pid = getpid();
    if (boot.nranks < 4) return;
    MUST(boot.world->all_gather(boot.world, pids, &pid, sizeof pid));
    MUST(ledger_create(&ledger, boot.rank, boot.nranks, boot.host));
    spec.ledger = ledger;
    for (int i = 0; i < LEDGER_PHASES; i++) spec.limit[i] = boot.rank == boot.nranks - 1 ? 2.0 : 600.0;
    MUST(watchdog_start(&w, &spec, boot.world));
    double t0 = now_seconds();
    if (boot.rank < boot.nranks - 1) {
        raise(SIGSTOP);
    } else {
        while (!(said > 0.0) && now_seconds() - t0 < 60.0) usleep(10000);
        // The limit of 2 s; two waits of 2 s for a leader, two to collect; and slack for slow machines.
        EXPECT(said > 0.0 && said - t0 < 2.0 + 8.0 + 3.0);
        for (int i = 0; !(said > 0.0) && i < boot.nranks - 1; i++) kill((pid_t)pids[i], SIGCONT);
    }
    MUST(boot.world->barrier(boot.world));
    watchdog_stop(&w);
    ledger_close(&ledger);
}

int main(void) {
    static const RankTest tests[] = {{"addresses", test_addresses}, {"refused", test_refused},
                                     {"many stopped", test_many_stopped}};
    MUST(boot_init(&boot));
    log_init(boot.rank, boot.nranks);
    make_nowhere();
    int failed = rank_tests_run(tests, 3);
    boot_finish(&boot);
    return failed;
}
