// Uninitialised, aligned memory for the rows of one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace densecrf {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) {
    if (size == 0) return;
    // Large buffers are touched once per call: with huge pages the page faults no longer show in the profile.
    constexpr int64_t huge = int64_t(2) << 20;
    int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    const int64_t alignment = bytes >= huge ? huge : 64;
    bytes = (bytes + 63) / 64 * 64;
    if (posix_memalign(reinterpret_cast<void**>(&data_), alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    if (bytes >= huge) madvise(data_, bytes / huge * huge, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace densecrf
