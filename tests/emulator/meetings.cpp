// What threads wait for: the barrier of the block and the operations of a warp.
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "block.h"

namespace emulator {
namespace {

constexpr uint64_t kGarbage = 0xCBCBCBCBCBCBCBCBu;

// --- words ---

std::string words(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string words(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

std::string words(const Thread& thread, Site site) {
  return "thread " + std::to_string(thread.index) + " at " + words(site);
}

// --- the barrier ---

void open_barrier() {
  // nobody waits for the barrier before any more, so everybody has read its votes
  block.votes = {block.positive, block.waiting};
  block.waiting = block.positive = 0;
  for (int w = 0; w * warpSize < block.threads; ++w)
    if (block.warp[w].running) block.make_ready(w, block.warp[w].running);
}

// --- warps ---

// Whether the lane may wait for that; otherwise the reason is in `failure`.
bool may_meet(const Thread& thread, const Warp& warp, const Meeting& wanted) {
  const unsigned lane = lane_bit(thread);
  if (!(wanted.mask & lane))
    failure = words(thread, wanted.site) + ": the mask " + words(wanted.mask) + " does not name the lane itself";
  if (wanted.mask & ~warp.running)
    failure = words(thread, wanted.site) + ": the mask " + words(wanted.mask) +
              " names lanes that have exited or never were, " + words(wanted.mask & ~warp.running);
  for (int m = 0; m < warp.meetings; ++m) {
    const Meeting& other = warp.meeting[m];
    const bool same = other.mask == wanted.mask && other.operation == wanted.operation && other.site == wanted.site;
    if (!same && (other.mask & lane) && (other.arrived & wanted.mask))
      failure = "lanes of a warp wait for each other at different lines or with different masks: " +
                words(thread, wanted.site) + " with mask " + words(wanted.mask) + ", lanes " + words(other.arrived) +
                " at " + words(other.site) + " with mask " + words(other.mask);
  }
  return failure.empty();
}

Meeting& join(Warp& warp, const Meeting& wanted) {
  for (int m = 0; m < warp.meetings; ++m)
    if (warp.meeting[m].mask == wanted.mask) return warp.meeting[m];
  return warp.meeting[warp.meetings++] = wanted;
}

// Gives every lane its result.
void conclude(Warp& warp, const Meeting& meeting) {
  if (meeting.operation == WarpOperation::sync) return;
  uint64_t values[warpSize];
  unsigned ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    const bool takes_part = meeting.mask >> lane & 1;
    values[lane] = takes_part ? warp.word[lane] : kGarbage;
    ballot |= static_cast<unsigned>(takes_part && values[lane] != 0) << lane;
  }
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(meeting.mask >> lane & 1)) continue;
    uint64_t& result = warp.word[lane];
    if (meeting.operation == WarpOperation::ballot) result = ballot;
    if (meeting.operation == WarpOperation::shuffle) result = values[warp.source[lane]];
    if (meeting.operation == WarpOperation::match) {
      result = 0;
      for (int other = 0; other < warpSize; ++other)
        result |= static_cast<uint64_t>((meeting.mask >> other & 1) && values[other] == values[lane]) << other;
    }
  }
}

}  // namespace

Votes meet_block(int predicate, Site site) {
  Thread& thread = *current;
  if (block.waiting == 0) block.first_waiting = &thread;
  const Thread& other = *block.first_waiting;
  thread.site = site;
  thread.mask = 0;
  if (!(other.site == site)) {
    failure = "threads wait for the block at different lines: " + words(thread, site) + ", " + words(other, other.site);
    give_up();
  }
  block.positive += predicate != 0;
  if (++block.waiting == block.running) open_barrier();
  wait();
  return block.votes;
}

uint64_t meet_warp(unsigned mask, WarpOperation operation, uint64_t value, int source, Site site) {
  Thread& thread = *current;
  const int w = warp_index(thread), lane = static_cast<int>(thread.index) % warpSize;
  Warp& warp = block.warp[w];
  const Meeting wanted{mask, 0, operation, site};
  if (!may_meet(thread, warp, wanted)) give_up();
  thread.site = site;
  thread.mask = mask;
  warp.word[lane] = value;
  warp.source[lane] = source;

  Meeting& meeting = join(warp, wanted);
  meeting.arrived |= lane_bit(thread);
  if (meeting.arrived == mask) {
    conclude(warp, meeting);
    meeting = warp.meeting[--warp.meetings];
    block.make_ready(w, mask);
  }
  wait();
  return warp.word[lane];
}

bool exit_thread(Thread& thread) {
  Warp& warp = block.warp[warp_index(thread)];
  --block.running;
  warp.running &= ~lane_bit(thread);
  for (int m = 0; m < warp.meetings; ++m) {
    const Meeting& meeting = warp.meeting[m];
    if (meeting.mask & lane_bit(thread))
      failure = "thread " + std::to_string(thread.index) + " has exited, but the mask " + words(meeting.mask) + " at " +
                words(meeting.site) + " names it";
  }
  if (block.waiting > 0 && block.waiting == block.running) open_barrier();
  return failure.empty();
}

void fail(const char* message, Site site) {
  failure = words(*current, site) + ": " + message;
  give_up();
}

std::string state_of_threads() {
  std::map<std::string, std::pair<int, unsigned>> states;  // how many threads, and the first of them
  for (int t = 0; t < block.threads; ++t) {
    const Thread& thread = block.thread[t];
    const Warp& warp = block.warp[warp_index(thread)];
    std::string state = warp.running & lane_bit(thread) ? "can go on" : "exited";
    if (warp.running & ~warp.ready & lane_bit(thread)) {
      state = (thread.mask ? "waiting for its warp at " : "waiting for the block at ") + words(thread.site);
      if (thread.mask) state += " with mask " + words(thread.mask);
    }
    ++states.emplace(state, std::make_pair(0, thread.index)).first->second.first;
  }
  std::string text;
  for (const auto& [state, threads] : states)
    text += (text.empty() ? "" : "; ") + std::to_string(threads.first) + " " + state + " (the first is thread " +
            std::to_string(threads.second) + ")";
  return text;
}

}  // namespace emulator
