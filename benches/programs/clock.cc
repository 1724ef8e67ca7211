// Prints the monotonic clock, in nanoseconds, as main begins. Six modules:
// itself, the loader, libc, libm, libstdc++ and libgcc_s.
#include <iostream>
#include <time.h>

int main() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    std::cout << now.tv_sec * 1000000000LL + now.tv_nsec << std::endl;
    return 0;
}
