"""tools/vm: run a command in a throw-away guest whose kernel has what this machine's may lack.

    cli       the command line, signals, exit codes
    kernel    Debian's kernel and modules: fetched by apt, unpacked once, kept in the cache
    modules   which module needs which
    initrd    the guest's first files: a busybox, modules, the two scripts, this run's plan
    plan      what this run asks of the scripts
    qemu      the command line of the emulator, its life and its end
    stream    the guest's output, as it comes, and the mark that ends it
    init.sh   PID 1 until the host's files are there; start.sh: from then on

Only Python's library is used.
"""
