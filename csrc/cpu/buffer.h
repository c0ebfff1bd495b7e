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

// Asks for huge pages where the range holds whole ones: large memory that one call touches for the first time otherwise
// spends as long on page faults as on its contents.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t huge = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / huge * huge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) {
    if (size == 0) return;
    constexpr int64_t huge = int64_t(2) << 20;
    const int64_t bytes = (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    if (posix_memalign(reinterpret_cast<void**>(&data_), bytes >= huge ? huge : 64, bytes) != 0) throw std::bad_alloc();
    prefer_huge_pages(data_, bytes);
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
