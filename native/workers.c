#define _GNU_SOURCE
#include "workers.h"

#include "runs.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

struct job {
    void (*work)(void *shared, int worker);
    void *shared;
    int worker;
};

static void *start(void *argument) {
    struct job *job = argument;
    job->work(job->shared, job->worker);
    return NULL;
}

int usable_processors(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1; /* more than 1024 processors, or forbidden */
    int count = CPU_COUNT(&set);
    return count > 0 ? count : 1;
}

void run_workers(void (*work)(void *shared, int worker), void *shared, int count) {
    pthread_t threads[MAX_WORKERS];
    struct job jobs[MAX_WORKERS];
    int started = 1;
    if (count > 1) {
        /* Threads are made for a run and end with it: a kept one would not survive a fork. They
         * inherit the mask, since signals are the business of Python's threads. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (; started < count && started < MAX_WORKERS; started++) {
            jobs[started] = (struct job){work, shared, started};
            if (pthread_create(&threads[started], NULL, start, &jobs[started]))
                break;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    work(shared, 0);
    while (--started > 0)
        pthread_join(threads[started], NULL);
}
