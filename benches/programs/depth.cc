// std::map of strings built and dropped at call depth 60.
// usage: depth ROUNDS
#include <cstdlib>
#include <map>
#include <string>

static long __attribute__((noinline)) work(int depth, long rounds) {
    if (depth > 0) {
        long result = work(depth - 1, rounds);
        __asm__ volatile("" : : "r"(result) : "memory");
        return result;
    }
    long sum = 0;
    for (long r = 0; r < rounds; r++) {
        std::map<std::string, std::string> map;
        for (int i = 0; i < 1000; i++) {
            std::string key = "a key that is too long for the small buffer " + std::to_string(i * 7919 % 1000);
            map[key] = key + key;
        }
        sum += map.size();
    }
    return sum;
}

int main(int argc, char **argv) {
    return work(58, argc > 1 ? std::atol(argv[1]) : 300) == 0;
}
