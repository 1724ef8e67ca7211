// std::map of strings built and dropped at call depth 60.
// usage: depth ROUNDS STRINGS
#include <cstdlib>
#include <map>
#include <string>

static long __attribute__((noinline)) work(int depth, long rounds, long strings) {
    if (depth > 0) {
        long result = work(depth - 1, rounds, strings);
        __asm__ volatile("" : : "r"(result) : "memory");
        return result;
    }
    long sum = 0;
    for (long r = 0; r < rounds; r++) {
        std::map<std::string, std::string> map;
        for (long i = 0; i < strings; i++) {
            std::string key = "a key that is too long for the small buffer " + std::to_string(i * 7919 % strings);
            map[key] = key + key;
        }
        sum += map.size();
    }
    return sum;
}

int main(int argc, char **argv) {
    return work(58, argc > 1 ? std::atol(argv[1]) : 300, argc > 2 ? std::atol(argv[2]) : 1000) == 0;
}
