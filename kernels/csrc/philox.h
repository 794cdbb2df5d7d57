// Philox 4x32-10 (Salmon et al. 2011) and where in it the random bits of an attention weight are found.
//
// For the CPU, for CUDA and for the emulator; kernels/reference.py has the same in torch and says why the bits
// are in this order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SLM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SLM_HOST_DEVICE inline
#endif

namespace slm {

struct PhiloxWords {
  uint32_t word[4];
};

// The four words that Philox makes of a counter under a key.
SLM_HOST_DEVICE PhiloxWords philox(PhiloxWords counter, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  PhiloxWords x = counter;
  for (int round = 0; round < 10; ++round) {
    uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * x.word[0];
    uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * x.word[2];
    x = {{static_cast<uint32_t>(product1 >> 32) ^ x.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ x.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return x;
}

// A weight stays where its 16 bits are below this: the probability of staying, in 1/65536, at least one of them.
SLM_HOST_DEVICE uint32_t keep_threshold(double dropout_p) {
  uint32_t threshold = static_cast<uint32_t>((1 - dropout_p) * 65536 + 0.5);
  return threshold > 0 ? threshold : 1;
}

// The counter of the eight weights at rows row, row + 8 and columns column, column + 8, + 16, + 24 of a tile of 16 x 32.
SLM_HOST_DEVICE PhiloxWords dropout_counter(int64_t batch, int64_t head, int64_t row, int64_t column) {
  return {{static_cast<uint32_t>(column / 32 * 8 + column % 8), static_cast<uint32_t>(row / 16 * 8 + row % 8),
           static_cast<uint32_t>(head), static_cast<uint32_t>(batch)}};
}

// The 16 bits of the weight at `row`, `column`, from the words of its counter.
SLM_HOST_DEVICE uint32_t dropout_bits(const PhiloxWords& words, int64_t row, int64_t column) {
  return words.word[row % 16 / 8 * 2 + column % 32 / 16] >> (column % 16 / 8 * 16) & 0xFFFF;
}

}  // namespace slm
