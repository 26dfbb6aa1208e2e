// A loop over independent tasks on several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace hat_alignment {

// Calls work(worker, task) once for every task in [0, tasks); worker < threads tells which scratch
// memory to use. Threads live for one call: none is left behind for a fork or an unload to trip
// over, and starting one takes tens of microseconds. `work` must not throw.
//
// Throws std::bad_alloc only, and only before any work is done.
template <class Work>
void parallel_for(std::int64_t tasks, std::int64_t threads, const Work& work) {
    std::atomic<std::int64_t> next{0};
    const auto loop = [&](std::int64_t worker) {
        for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
            work(worker, task);
    };
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads));
    try {
        for (std::int64_t worker = 1; worker < threads && worker < tasks; ++worker)
            others.emplace_back(loop, worker);
    } catch (const std::exception&) {
        // The system has no more threads to give: those there are do all of the work, and the
        // results are the same.
    }
    loop(0);
    for (std::thread& other : others) other.join();
}

}  // namespace hat_alignment
