/* A disk whose flushes take longer, and a FIFO that passes for a keyboard, for bench/flush.py.
 *
 * Preloaded (LD_PRELOAD) it adds SLOW_FLUSH_US microseconds to each fsync and fdatasync of the process.
 * An evdev request (ioctl type 'E') to something that is no such device is answered as a keyboard would on
 * which no key is held, so that the real reader opens a FIFO and takes input_event bytes from it.
 *
 *     cc -shared -fPIC -O2 -o slowflush.so slowflush.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static void wait_longer(void)
{
    const char *text = getenv("SLOW_FLUSH_US");
    long us = text ? atol(text) : 0;
    struct timespec rest = {us / 1000000, us % 1000000 * 1000};
    int saved = errno;
    while (us > 0 && nanosleep(&rest, &rest) && errno == EINTR)
        ;
    errno = saved;
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    wait_longer();
    return result;
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(fd);
    wait_longer();
    return result;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!real)
        real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    int result = real(fd, request, argument);
    if (result < 0 && errno == ENOTTY && _IOC_TYPE(request) == 'E') {
        if (_IOC_DIR(request) == _IOC_READ)
            memset(argument, 0, _IOC_SIZE(request));
        return 0;
    }
    return result;
}
