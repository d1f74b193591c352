// cp.async: the destination holds garbage from the issue to the wait, and the source is read at either end, as the schedule
// likes. So a missing wait, a reused buffer that someone still reads, and a source that changes meanwhile all show.
#include <cstring>

#include "emulator/block.hpp"

namespace emulator {

void async_copy(const Site& site, void* shared, const void* global, int size, int bytes) {
    if (bytes < 0 || bytes > size) fail(site, "cp.async: %d source bytes of a copy of %d", bytes, size);
    check_shared(site, "cp.async destination", shared, static_cast<std::size_t>(size), static_cast<std::size_t>(size));
    check_aligned(site, "cp.async source", global, static_cast<std::size_t>(size));
    AsyncCopy copy{shared, global, size, bytes, (random_bits() & 1) != 0, {}, site};
    if (copy.read_early) {
        note_access(site, Access::read, global, static_cast<std::size_t>(bytes));
        std::memcpy(copy.early, global, static_cast<std::size_t>(bytes));
    }
    note_access(site, Access::write, shared, static_cast<std::size_t>(size));
    fill_with_garbage(shared, static_cast<std::size_t>(size));
    block.running->open_group.push_back(copy);
    if (random_bits() % 8 == 0) yield();
}

void async_commit() {
    Thread& self = *block.running;
    self.groups.push_back(std::move(self.open_group));
    self.open_group.clear();
}

void async_wait(int pending) {
    Thread& self = *block.running;
    const int finished = static_cast<int>(self.groups.size()) - pending;
    for (int i = 0; i < finished; i++)
        for (const AsyncCopy& copy : self.groups[i]) {
            note_access(copy.site, Access::write, copy.shared, static_cast<std::size_t>(copy.size));
            if (copy.read_early) {
                std::memcpy(copy.shared, copy.early, static_cast<std::size_t>(copy.bytes));
            } else {
                note_access(copy.site, Access::read, copy.global, static_cast<std::size_t>(copy.bytes));
                std::memcpy(copy.shared, copy.global, static_cast<std::size_t>(copy.bytes));
            }
            std::memset(static_cast<unsigned char*>(copy.shared) + copy.bytes, 0,
                        static_cast<std::size_t>(copy.size - copy.bytes));
        }
    if (finished > 0) self.groups.erase(self.groups.begin(), self.groups.begin() + finished);
}

}  // namespace emulator
