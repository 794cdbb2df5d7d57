// mma.sync, ldmatrix and cp.async on the lanes of an emulated warp.

#include "tensor_core.h"

#include <cstring>
#include <string>

#include "counter.h"
#include "memory.h"
#include "numbers.h"
#include "shadow.h"
#include "tracer.h"

namespace emulator {
namespace {

std::uint32_t word(float value) { return bits<std::uint32_t>(value); }

struct MmaPart {
    float* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
};

// Element `i` of 16-bit elements packed in pairs, the first in the low half.
float unpack(Format format, const std::uint32_t* registers, int i) {
    const auto word = static_cast<std::uint16_t>(registers[i / 2] >> 16 * (i % 2));
    return format == Format::half ? from_half(word) : from_bfloat16(word);
}

// The hardware reads the upper 19 bits of a float32.
float truncate_to_tf32(std::uint32_t word) { return bits<float>(word & 0xFFFFE000u); }

template <int rows, int columns>
float& at(float (&matrix)[rows][columns], Element element) {
    return matrix[element.row][element.column];
}

template <int K>
void multiply(float (&c)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < K; ++k)
            for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
}

// Calls `body(lane, part)` for all 32 lanes.
template <class Body>
void each_lane(Meeting& meeting, Body body) {
    for (int lane = 0; lane < kWarpSize; ++lane) body(lane, *static_cast<MmaPart*>(meeting.operand[lane]));
}

// Gathers the fragments into matrices, multiplies, and scatters the sum.
template <int K, class Gather>
void perform(Meeting& meeting, Gather gather) {
    float a[16][K], b[K][8], c[16][8];
    each_lane(meeting, [&](int lane, MmaPart& part) {
        gather(lane, part, a, b);
        for (int i = 0; i < 4; ++i) at(c, element_c(lane, i)) = part.c[i];
    });
    multiply<K>(c, a, b);
    each_lane(meeting, [&](int lane, MmaPart& part) {
        for (int i = 0; i < 4; ++i) part.c[i] = at(c, element_c(lane, i));
    });
}

template <Format format>
void perform_k16(Meeting& meeting) {
    perform<16>(meeting, [](int lane, MmaPart& part, float (&a)[16][16], float (&b)[16][8]) {
        for (int i = 0; i < 8; ++i) at(a, element_a16(lane, i)) = unpack(format, part.a, i);
        for (int i = 0; i < 4; ++i) at(b, element_b16(lane, i)) = unpack(format, part.b, i);
    });
}

void perform_k8(Meeting& meeting) {
    perform<8>(meeting, [](int lane, MmaPart& part, float (&a)[16][8], float (&b)[8][8]) {
        for (int i = 0; i < 4; ++i) at(a, element_a8(lane, i)) = truncate_to_tf32(part.a[i]);
        for (int i = 0; i < 2; ++i) at(b, element_b8(lane, i)) = truncate_to_tf32(part.b[i]);
    });
}

struct LoadPart {
    const char* row;
    std::uint32_t* registers;
    Site site;
};

// The lane that gets element (row, column) of a matrix reads it, whichever lane gave the address.
void check_element(const char* element, int receiver, Site site) {
    Shadow* shadow = current_block->shadow_of(element);
    if (!shadow) return;
    const int thread = current_thread->warp() * kWarpSize + receiver;
    const std::string wrong = shadow->access(thread, element, 2, Access::read, site);
    if (!wrong.empty()) current_block->fail("ldmatrix, lane " + std::to_string(receiver) + ": " + wrong, site);
}

// Register m of a lane holds elements 2 (lane % 4) and the next of row lane / 4 of matrix m; transposed, of column.
template <int count, bool transposed>
void perform_load(Meeting& meeting) {
    const auto part = [&](int lane) { return *static_cast<LoadPart*>(meeting.operand[lane]); };
    std::uint16_t matrix[count][8][8];
    for (int lane = 0; lane < count * 8; ++lane) {
        const int row = lane % 8;
        std::memcpy(matrix[lane / 8][row], part(lane).row, 16);
        for (int column = 0; column < 8; ++column) {
            const int receiver = transposed ? column * 4 + row / 2 : row * 4 + column / 2;
            check_element(part(lane).row + 2 * column, receiver, part(lane).site);
        }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
        const int line = lane / 4, pair = lane % 4 * 2;
        for (int m = 0; m < count; ++m) {
            const std::uint32_t low = transposed ? matrix[m][pair][line] : matrix[m][line][pair];
            const std::uint32_t high = transposed ? matrix[m][pair + 1][line] : matrix[m][line][pair + 1];
            part(lane).registers[m] = high << 16 | low;
        }
    }
}

}  // namespace

void mma(Format format, float* c, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1, Site site) {
    MmaPart part{c, a, {b0, b1}};
    const bool is_tf32 = format == Format::tf32, is_half = format == Format::half;
    const auto perform = is_tf32 ? perform_k8 : is_half ? perform_k16<Format::half> : perform_k16<Format::bfloat16>;
    const char* name = is_tf32   ? "mma.m16n8k8.tf32"
                       : is_half ? "mma.m16n8k16.f16"
                                 : "mma.m16n8k16.bf16";
    const std::uint32_t given[10] = {a[0], a[1], a[2], a[3], b0, b1, word(c[0]), word(c[1]), word(c[2]), word(c[3])};
    current_block->meet_warp(0xFFFFFFFFu, &part, perform, name, site, true);
    if (AccessCounter* counter = current_block->counter(); counter && current_thread->lane() == 0)
        counter->record_mma(site);
    if (Tracer* tracer = current_block->tracer())
        tracer->exchange(name, site, {given, given + 10}, {word(c[0]), word(c[1]), word(c[2]), word(c[3])});
}

void load_matrix(int count, bool transposed, std::uint32_t* registers, const void* row, Site site) {
    using Perform = void (*)(Meeting&);
    static constexpr Perform kPerform[2][3] = {
        {perform_load<1, false>, perform_load<2, false>, perform_load<4, false>},
        {perform_load<1, true>, perform_load<2, true>, perform_load<4, true>}};
    static constexpr const char* kName[2][3] = {{"ldmatrix.x1", "ldmatrix.x2", "ldmatrix.x4"},
                                                {"ldmatrix.x1.trans", "ldmatrix.x2.trans", "ldmatrix.x4.trans"}};
    const int size = count / 2;  // 1, 2, 4 -> 0, 1, 2
    const char* name = kName[transposed][size];
    if (current_thread->lane() < 8 * count) {
        require_aligned(row, 16, name, site);
        require_shared(row, 16, name, site);
        if (AccessCounter* counter = current_block->counter())
            counter->record(*current_thread, row, 16, Access::read, Space::shared, site);
    }
    LoadPart part{static_cast<const char*>(row), registers, site};
    current_block->meet_warp(0xFFFFFFFFu, &part, kPerform[transposed][size], name, site, true);
    if (Tracer* tracer = current_block->tracer()) tracer->exchange(name, site, {}, {registers, registers + count}, row);
}

void copy_async(void* shared, const void* global, int bytes, int source_bytes, Site site) {
    require_aligned(shared, bytes, "cp.async (to shared memory)", site);
    require_shared(shared, bytes, "cp.async", site);
    if (source_bytes) {
        require_aligned(global, bytes, "cp.async (from global memory)", site);
        require_global(global, "cp.async", site);
        check_access(global, source_bytes, Access::read, site);
    }
    if (Shadow* shadow = current_block->shadow_of(shared)) {
        const std::string wrong = shadow->begin_copy(current_thread->linear, shared, bytes, site);
        if (!wrong.empty()) current_block->fail("cp.async " + wrong, site);
    }
    if (AccessCounter* counter = current_block->counter())
        counter->record(*current_thread, shared, bytes, Access::write, Space::shared, site);
    current_thread->open_copies.push_back({shared, global, bytes, source_bytes, site});
}

void copy_async_commit() {
    current_thread->copy_groups.push_back(std::move(current_thread->open_copies));
    current_thread->open_copies.clear();
}

void copy_async_wait(int groups_left_open) {
    auto& groups = current_thread->copy_groups;
    for (; static_cast<int>(groups.size()) > groups_left_open; groups.pop_front()) {
        for (const AsyncCopy& copy : groups.front()) {
            char* to = static_cast<char*>(copy.to);
            std::memcpy(to, copy.from, copy.source_bytes);
            std::memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
            if (Shadow* shadow = current_block->shadow_of(to))
                shadow->end_copy(current_thread->linear, to, copy.bytes, copy.site);
        }
    }
}

}  // namespace emulator
