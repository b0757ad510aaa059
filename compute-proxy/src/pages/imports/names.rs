//! The names of libc that a lazily paged `postgres` may import, by what they do about files.
//!
//! From the binaries of 15.20 (Debian), 16.14, 17.10 and 18.4, each name judged by what Postgres does with it; and the
//! names that other versions of the compiler or of glibc give to the same functions. Sorted, for a binary search.

/// The library stands before them.
#[rustfmt::skip]
pub const INTERCEPTED: &[&str] = &[
    "__pread64_chk", "__pread_chk", "__read_chk", "accept", "accept4", "close",
    "copy_file_range", "creat", "creat64", "dup", "dup2", "dup3", "epoll_ctl", "fcntl",
    "fcntl64", "fdatasync", "fopen", "fopen64", "fsync", "ftruncate", "ftruncate64", "lseek", "lseek64", "mmap",
    "mmap64", "open", "open64", "openat", "openat64", "posix_fadvise", "posix_fadvise64",
    "posix_fallocate", "posix_fallocate64", "pread", "pread64", "preadv", "preadv64", "pwrite",
    "pwrite64", "pwritev", "pwritev64", "read", "recv", "rename", "sendfile",
    "sendfile64", "sync_file_range", "syncfs", "truncate", "truncate64", "unlink", "write",
];

/// They take paths or descriptors, and neither return nor change what is in a file: sizes, times, permissions,
/// names, directories. A file with a map has the right size from the start, and
/// stays the same file under any name.
#[rustfmt::skip]
pub const NAMES_AND_STATUS: &[&str] = &[
    "__fxstat", "__fxstat64", "__lxstat", "__lxstat64", "__realpath_chk", "__xstat",
    "__xstat64", "access", "chdir", "chmod", "chown", "closedir", "fstat",
    "fstat64", "getcwd", "link", "lstat", "lstat64", "mkdir", "opendir", "readdir",
    "readdir64", "readlink", "realpath", "rmdir", "stat", "stat64", "symlink",
    "utime",
];

/// They work on streams, which `fopen` makes, and that is intercepted. `freopen` opens past the library: Postgres
/// calls it for the three standard streams only.
#[rustfmt::skip]
pub const STREAMS: &[&str] = &[
    "_IO_getc", "__fprintf_chk", "__fread_chk", "__isoc23_fscanf", "__isoc99_fscanf",
    "__vfprintf_chk", "clearerr", "fclose", "feof", "ferror", "fflush", "fgetc", "fgets",
    "fileno", "fputc", "fputs", "fread", "freopen", "fscanf", "fseek", "fseeko", "fseeko64",
    "ftell", "ftello", "ftello64", "fwrite", "getc", "perror", "puts", "setvbuf",
];

/// They touch files, but never those of the data directory: sockets, pipes, shared memory; what libc opens for
/// itself (libraries, locales, message catalogues, users, hosts, the log daemon); programs, which run without the
/// library.
#[rustfmt::skip]
pub const OTHER_FILES: &[&str] = &[
    "__syslog_chk", "bind", "bind_textdomain_codeset", "bindtextdomain",
    "closelog", "connect", "dlopen", "epoll_create1", "epoll_wait", "freeifaddrs",
    "getaddrinfo", "getgrnam", "getifaddrs", "getnameinfo", "getpwuid", "getpwuid_r",
    "getsockname", "getsockopt", "isatty", "listen", "munmap", "newlocale", "openlog", "pclose",
    "pipe", "pipe2", "poll", "popen", "recvfrom", "recvmsg", "select",
    "send", "sendmsg", "sendto", "setlocale", "setsockopt", "shm_open", "shm_unlink", "shmat", "shmctl",
    "shmdt", "shmget", "shutdown", "signalfd", "socket", "syslog", "system",
];

/// They touch no files.
#[rustfmt::skip]
pub const NO_FILES: &[&str] = &[
    "__assert_fail", "__ctype_b_loc", "__ctype_tolower_loc", "__ctype_toupper_loc",
    "__cxa_atexit", "__cxa_finalize", "__errno_location", "__explicit_bzero_chk", "__fdelt_chk",
    "__isoc23_sscanf", "__isoc23_strtol", "__isoc23_strtoll", "__isoc23_strtoul",
    "__isoc23_strtoull", "__isoc99_sscanf", "__libc_start_main", "__longjmp_chk",
    "__memcpy_chk", "__memmove_chk", "__memset_chk", "__printf_chk", "__sigsetjmp",
    "__snprintf_chk", "__sprintf_chk", "__stack_chk_fail", "__stpcpy_chk", "__strcat_chk",
    "__strcpy_chk", "__strncat_chk", "__strncpy_chk", "__vsnprintf_chk", "__xpg_strerror_r",
    "_exit", "abort", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "atof",
    "atoi", "atol", "backtrace", "backtrace_symbols", "backtrace_symbols_fd", "bsearch",
    "calloc", "cbrt", "ceil", "clock_gettime", "cos", "cosh", "dcgettext", "dcngettext",
    "dlclose", "dlerror", "dlsym", "environ", "erf", "erfc", "exit", "exp", "explicit_bzero",
    "floor", "fmod", "fork", "free", "freeaddrinfo", "freelocale", "gai_strerror", "getegid",
    "getenv", "geteuid", "getopt", "getpid", "getppid", "getrandom", "getrlimit", "getrusage",
    "gettimeofday", "getuid", "gmtime_r", "gnu_get_libc_version", "iswalnum", "iswalnum_l",
    "iswalpha", "iswalpha_l", "iswdigit", "iswdigit_l", "iswgraph", "iswgraph_l", "iswlower",
    "iswlower_l", "iswprint", "iswprint_l", "iswpunct", "iswpunct_l", "iswspace", "iswspace_l",
    "iswupper", "iswupper_l", "iswxdigit", "kill", "ldexp", "lgamma", "localeconv", "localtime",
    "localtime_r", "log", "log10", "malloc", "mbstowcs", "memchr", "memcmp", "memcpy",
    "memmove", "memset", "nanosleep", "nl_langinfo", "nl_langinfo_l", "optarg", "opterr",
    "optind", "optopt", "pow", "prctl", "program_invocation_name", "raise", "realloc",
    "sem_destroy", "sem_init", "sem_post", "sem_trywait", "sem_wait", "setenv", "setitimer",
    "setsid", "sigaction", "sigaddset", "sigdelset", "sigemptyset", "sigfillset", "sigprocmask",
    "sin", "sincos", "sinh", "sqrt", "sqrtf", "srandom", "sscanf", "stderr", "stdin", "stdout",
    "stpcpy", "strcat", "strchr", "strchrnul", "strcmp", "strcoll", "strcoll_l", "strcpy",
    "strcspn", "strdup", "strerror_r", "strftime", "strftime_l", "strlcat", "strlcpy", "strlen",
    "strncat", "strncmp", "strncpy", "strnlen", "strpbrk", "strrchr", "strsep", "strsignal",
    "strspn", "strstr", "strtod", "strtof", "strtok", "strtok_r", "strtol", "strtoul",
    "strxfrm", "strxfrm_l", "sysconf", "sysinfo", "tan", "tanh", "textdomain", "tgamma", "time",
    "timezone", "towlower", "towlower_l", "towupper", "towupper_l", "tzname", "tzset", "umask",
    "unsetenv", "uselocale", "usleep", "waitpid", "wcstombs",
];
