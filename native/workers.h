/* The same function on several threads. */
#ifndef HYBRID_WORKERS_H
#define HYBRID_WORKERS_H

/* Processors that this thread may run on; at least 1. */
int usable_processors(void);

/* Calls work(shared, 0) here and work(shared, 1 ... count - 1) on threads, and returns when all
 * have. If no thread can be had there are fewer calls: each must take work while there is some. */
void run_workers(void (*work)(void *shared, int worker), void *shared, int count);

#endif
