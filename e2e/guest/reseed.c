/*
 * Gives the kernel's random generator new entropy: reads it from standard input, credits it, and makes the generator
 * use it at once. A VM restored from a saved state needs this, or every clone draws the same "random" numbers.
 * random(4): RNDADDENTROPY, RNDRESEEDCRNG (both need CAP_SYS_ADMIN).
 */
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The generator's own state is 256 bits; more than twice that adds nothing. */
#define MOST 64
/* Less would not separate two clones beyond doubt. */
#define LEAST 32

int main(void) {
    struct {
        int entropy_count; /* bits */
        int buf_size;      /* bytes */
        unsigned char buf[MOST];
    } pool = {0};

    while (pool.buf_size < MOST) {
        ssize_t got = read(STDIN_FILENO, pool.buf + pool.buf_size, MOST - pool.buf_size);
        if (got < 0) {
            perror("read standard input");
            return 1;
        }
        if (got == 0) {
            break;
        }
        pool.buf_size += (int)got;
    }
    if (pool.buf_size < LEAST) {
        fprintf(stderr, "at least %d bytes of entropy are needed on standard input\n", LEAST);
        return 2;
    }
    pool.entropy_count = pool.buf_size * 8;

    int random = open("/dev/random", O_WRONLY | O_CLOEXEC);
    if (random < 0) {
        perror("open /dev/random");
        return 1;
    }
    if (ioctl(random, RNDADDENTROPY, &pool) != 0) {
        perror("RNDADDENTROPY");
        return 1;
    }
    if (ioctl(random, RNDRESEEDCRNG) != 0) {
        perror("RNDRESEEDCRNG");
        return 1;
    }
    return 0;
}
