// Operations on NHWC images for the CPU: convolutions by oneDNN, and batch normalization and pooling
// with indices, for which XLA's CPU backend is slow. XLA calls them through its typed FFI; the
// Python modules of this folder document shapes and meanings of the arguments.
//
// All sums are float32, in an order that depends only on shapes and the number of threads, so that a
// repeated call gives the same bits.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Dims = dnnl::memory::dims;
using Numbers = ffi::Span<const int64_t>;

// One call at a time, because the OpenMP threads of several callers would compete for the same cores.
// A call waits only for this lock, so several devices cannot block each other.
std::mutex running;

template <class Call>
ffi::Error Run(Call call) {
  std::lock_guard<std::mutex> lock(running);
  try {
    call();
    return ffi::Error::Success();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + (error.message ? error.message : "?"));
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory in a convolution");
  }
}

// ---------------------------------------------------------------------------- numbers

struct Bfloat16 {
  uint16_t bits;
};

// Numbers as bits, for copies: compilers select between these in vectors.
template <class T>
struct AsBits;
template <>
struct AsBits<float> {
  using type = uint32_t;
};
template <>
struct AsBits<Bfloat16> {
  using type = uint16_t;
};

inline float Load(float value) { return value; }
inline float Load(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Round to the upper half, to nearest, ties to even; NaN stays NaN.
inline uint32_t Rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return value != value ? 0x7fc0 : rounded;
}

inline void Store(float value, float* place) { *place = value; }
inline void Store(float value, Bfloat16* place) {
  place->bits = static_cast<uint16_t>(Rounded(value));
}

template <class T>
T* Data(ffi::AnyBuffer buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

template <class Call>
void ByType(ffi::DataType type, Call call) {
  if (type == ffi::DataType::BF16) {
    call(Bfloat16{});
  } else {
    call(float{});
  }
}

// ---------------------------------------------------------------------------- convolution

// What a primitive computes: a convolution, the gradient of its input, that of its kernel, or a
// transposed convolution, which takes the output of a convolution (`result`) to its input (`map`).
enum class Kind { kForward, kInput, kKernel, kTransposed };

struct Primitive {
  dnnl::primitive compute;
  dnnl::memory::desc map, kernel, result, scratch;  // layouts of the primitive
  dnnl::memory::desc given_kernel;                  // layout of the caller
  dnnl::reorder reorder;                            // between the two, if they differ
  dnnl::reorder map_blocks, result_blocks;          // from NHWC, if `blocked`
  std::string name;                                 // of oneDNN's implementation
  bool reorders = false;
  bool blocked = false;  // the primitive reads maps in blocks of channels
  int64_t interleaved = 0;  // features of a block, where `Interleave` reorders
};

dnnl::engine& Engine() {
  static auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

dnnl::memory::data_type TypeOf(ffi::DataType type) {
  return type == ffi::DataType::BF16 ? dnnl::memory::data_type::bf16
                                     : dnnl::memory::data_type::f32;
}

dnnl::memory::desc Map(Numbers shape, ffi::DataType type,
                       dnnl::memory::format_tag layout = dnnl::memory::format_tag::nhwc) {
  return {{shape[0], shape[3], shape[1], shape[2]}, TypeOf(type), layout};
}

struct Window {
  Dims strides, rates, before, after;
  int64_t groups;
  bool relu;
  bool swapped;  // the kernel is (h, w, features, channels)
  explicit Window(Numbers w)
      : strides{w[0], w[1]}, rates{w[2] - 1, w[3] - 1}, before{w[4], w[6]}, after{w[5], w[7]},
        groups(w[8]), relu(w[9] != 0), swapped(w[10] != 0) {}
};

// A kernel (h, w, channels of a group, all features) as oneDNN counts its dimensions.
std::pair<Dims, Dims> KernelDims(Numbers k, int64_t groups, bool swapped) {
  const int64_t features = k[3] / groups, row = k[2] * k[3];
  if (swapped) return {{k[2], k[3], k[0], k[1]}, {k[3], 1, k[1] * row, row}};
  if (groups == 1) return {{k[3], k[2], k[0], k[1]}, {1, k[3], k[1] * row, row}};
  return {{groups, features, k[2], k[0], k[1]}, {features, 1, k[3], k[1] * row, row}};
}

// The number of features in a block, if the kernel is reordered from float32 (h, w, channels,
// features) to bfloat16 blocks of features with pairs of channels next to each other; else 0.
int64_t InterleavedBlock(const dnnl::memory::desc& from, const dnnl::memory::desc& to) {
  const bool types = from.get_data_type() == dnnl::memory::data_type::f32 &&
                     to.get_data_type() == dnnl::memory::data_type::bf16;
  if (!types || from.get_ndims() != 4 || from.get_strides()[0] != 1) return 0;
  if (to.get_inner_nblks() != 2 || to.get_inner_idxs() != Dims{0, 1}) return 0;
  const int64_t block = to.get_inner_blks()[0];
  const Dims dims = to.get_dims();
  return to.get_inner_blks()[1] == 2 && dims[0] % block == 0 && dims[1] % 2 == 0 ? block : 0;
}

// oneDNN's own reorder from float32 to such blocks takes up to four times as long.
void Interleave(const Primitive& primitive, const float* from, uint16_t* to) {
  const Dims dims = primitive.kernel.get_dims(), strides = primitive.kernel.get_strides();
  const int64_t features = dims[0], channels = dims[1], width = dims[3];
  const int64_t block = primitive.interleaved;
#pragma omp parallel for collapse(2)
  for (int64_t part = 0; part < features / block; ++part) {
    for (int64_t tap = 0; tap < dims[2] * width; ++tap) {
      for (int64_t pair = 0; pair < channels / 2; ++pair) {
        const float* __restrict first = from + (tap * channels + 2 * pair) * features + part * block;
        const float* __restrict second = first + features;
        auto* __restrict both = reinterpret_cast<uint32_t*>(
            to + part * strides[0] + pair * strides[1] + tap / width * strides[2] +
            tap % width * strides[3]);
#pragma omp simd
        for (int64_t k = 0; k < block; ++k) {
          both[k] = Rounded(first[k]) | Rounded(second[k]) << 16;
        }
      }
    }
  }
}

// Add a reorder of the kernel, if the primitive needs another order than the caller's.
std::shared_ptr<Primitive> Ordered(Kind kind, std::shared_ptr<Primitive> made) {
  made->reorders = made->kernel != made->given_kernel;
  if (!made->reorders) return made;
  made->interleaved = InterleavedBlock(made->given_kernel, made->kernel);
  const bool out = kind == Kind::kKernel;
  const auto& from = out ? made->kernel : made->given_kernel;
  const auto& to = out ? made->given_kernel : made->kernel;
  made->reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  return made;
}

// Choose an implementation of the gradient of a kernel. oneDNN's choice on a CPU with AVX2 and no
// more reads NHWC; on blocks of eight channels it takes a half to a fifth of the time. A matrix
// product is faster still where many features share the cost of arranging the map for it, and with
// 1x1 kernels where blocks would be filled up with zeros.
template <class Describe>
auto KernelGradientOf(Primitive& primitive, Numbers map, Numbers kernel, Numbers result,
                      ffi::DataType type, int64_t groups, Describe describe) {
  auto chosen = describe(primitive.map, primitive.result);
  const std::string name = chosen.impl_info_str();
  if (groups != 1 || (name != "jit:avx2" && name != "jit_1x1:avx2")) return chosen;
  const bool is_pointwise = kernel[0] * kernel[1] == 1;
  const bool fills_blocks = map[3] % 8 == 0 && result[3] % 8 == 0;
  if (is_pointwise ? fills_blocks && map[3] < 512 : result[3] < 512) {
    const auto blocks = dnnl::memory::format_tag::nChw8c;
    const auto to_blocks = [](dnnl::memory::desc& from, const dnnl::memory::desc& to) {
      const dnnl::reorder::primitive_desc reorder(Engine(), from, Engine(), to);
      from = to;
      return dnnl::reorder(reorder);
    };
    primitive.blocked = true;
    primitive.map_blocks = to_blocks(primitive.map, Map(map, type, blocks));
    primitive.result_blocks = to_blocks(primitive.result, Map(result, type, blocks));
    return describe(primitive.map, primitive.result);
  }
  auto other = describe(primitive.map, primitive.result);
  while (other.next_impl()) {
    if (std::string(other.impl_info_str()).find("gemm") != std::string::npos) return other;
  }
  return chosen;
}

std::shared_ptr<Primitive> Make(Kind kind, Numbers map, Numbers kernel, Numbers result,
                                ffi::DataType type, ffi::DataType kernel_type, bool bias,
                                Numbers numbers) {
  const Window window(numbers);
  auto made = std::make_shared<Primitive>();
  made->map = Map(map, type);
  made->result = Map(result, type);
  const auto [dims, strides] = KernelDims(kernel, window.groups, window.swapped);
  made->given_kernel = dnnl::memory::desc(dims, TypeOf(kernel_type), strides);
  const dnnl::memory::desc free_kernel(dims, TypeOf(type), dnnl::memory::format_tag::any);
  dnnl::memory::desc offsets;
  if (bias) {
    const int64_t features = kind == Kind::kTransposed ? map[3] : result[3];
    offsets = {{features}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::a};
  }
  dnnl::primitive_attr options;
  options.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto direct = dnnl::algorithm::convolution_direct;
  if (window.relu && kind == Kind::kForward) {
    dnnl::post_ops after;
    after.append_eltwise(dnnl::algorithm::eltwise_relu, 0.f, 0.f);
    options.set_post_ops(after);
  }
  if (kind == Kind::kTransposed) {
    const dnnl::deconvolution_forward::primitive_desc transposed(
        Engine(), dnnl::prop_kind::forward_training, dnnl::algorithm::deconvolution_direct,
        made->result, free_kernel, offsets, made->map, window.strides, window.rates,
        window.before, window.after, options);
    made->kernel = transposed.weights_desc();
    made->scratch = transposed.scratchpad_desc();
    made->compute = dnnl::deconvolution_forward(transposed);
    made->name = transposed.impl_info_str();
    return Ordered(kind, made);
  }
  const dnnl::convolution_forward::primitive_desc forward(
      Engine(), dnnl::prop_kind::forward_training, direct, made->map, free_kernel, offsets,
      made->result, window.strides, window.rates, window.before, window.after,
      kind == Kind::kForward ? options : dnnl::primitive_attr());
  if (kind == Kind::kForward) {
    made->kernel = forward.weights_desc();
    made->scratch = forward.scratchpad_desc();
    made->compute = dnnl::convolution_forward(forward);
    made->name = forward.impl_info_str();
  } else if (kind == Kind::kInput) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), direct, made->map, free_kernel, made->result, window.strides, window.rates,
        window.before, window.after, forward, options);
    made->kernel = backward.weights_desc();
    made->scratch = backward.scratchpad_desc();
    made->compute = dnnl::convolution_backward_data(backward);
    made->name = backward.impl_info_str();
  } else {
    const dnnl::memory::desc sums(dims, dnnl::memory::data_type::f32,
                                  dnnl::memory::format_tag::any);
    const auto describe = [&](const dnnl::memory::desc& x, const dnnl::memory::desc& dy) {
      return dnnl::convolution_backward_weights::primitive_desc(
          Engine(), direct, x, sums, offsets, dy, window.strides, window.rates, window.before,
          window.after, forward, options);
    };
    const auto backward =
        KernelGradientOf(*made, map, kernel, result, type, window.groups, describe);
    made->kernel = backward.diff_weights_desc();
    made->scratch = backward.scratchpad_desc();
    made->compute = dnnl::convolution_backward_weights(backward);
    made->name = backward.impl_info_str();
  }
  return Ordered(kind, made);
}

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Scratch memory of a call: that of the primitive, and the kernel and the maps in the order that the
// primitive needs.
struct Scratch {
  size_t kernel, map, result, end;  // where each begins
  explicit Scratch(const Primitive& primitive)
      : kernel(Aligned(primitive.scratch.get_size())),
        map(kernel + Aligned(primitive.reorders ? primitive.kernel.get_size() : 0)),
        result(map + Aligned(primitive.blocked ? primitive.map.get_size() : 0)),
        end(result + (primitive.blocked ? primitive.result.get_size() : 0)) {}
};

// Cached: creating a primitive takes milliseconds; a network has tens of them, a process hundreds.
std::shared_ptr<Primitive> Get(Kind kind, Numbers map, Numbers kernel, Numbers result,
                               ffi::DataType type, ffi::DataType kernel_type, bool bias,
                               Numbers window) {
  static auto* kept = new std::map<std::vector<int64_t>, std::shared_ptr<Primitive>>();
  std::vector<int64_t> key{static_cast<int64_t>(kind), static_cast<int64_t>(type),
                           static_cast<int64_t>(kernel_type), bias};
  for (Numbers numbers : {map, kernel, result, window}) {
    key.insert(key.end(), numbers.begin(), numbers.end());
  }
  auto& place = (*kept)[key];
  if (!place) place = Make(kind, map, kernel, result, type, kernel_type, bias, window);
  return place;
}

void Execute(const Primitive& primitive, Kind kind, void* map, void* kernel, void* bias,
             void* result, ffi::AnyBuffer scratch) {
  const Scratch places(primitive);
  if (scratch.size_bytes() < places.end) throw std::bad_alloc();
  static thread_local dnnl::stream stream(Engine());
  auto* own = static_cast<char*>(scratch.untyped_data());
  void* ordered = own + places.kernel;
  if (primitive.blocked) {
    const auto order = [&](dnnl::reorder reorder, const dnnl::memory::desc& to, void*& data,
                           size_t place) {
      const auto from = dnnl::memory::desc(to.get_dims(), to.get_data_type(),
                                           dnnl::memory::format_tag::nhwc);
      void* blocks = own + place;
      reorder.execute(stream, {{DNNL_ARG_FROM, dnnl::memory(from, Engine(), data)},
                               {DNNL_ARG_TO, dnnl::memory(to, Engine(), blocks)}});
      data = blocks;
    };
    order(primitive.map_blocks, primitive.map, map, places.map);
    order(primitive.result_blocks, primitive.result, result, places.result);
  }
  dnnl::memory given(primitive.given_kernel, Engine(), kernel);
  dnnl::memory wanted(primitive.kernel, Engine(), primitive.reorders ? ordered : kernel);
  std::unordered_map<int, dnnl::memory> arguments;
  arguments[DNNL_ARG_SCRATCHPAD] = dnnl::memory(primitive.scratch, Engine(), own);
  const auto put = [&](int name, const dnnl::memory::desc& what, void* data) {
    arguments[name] = dnnl::memory(what, Engine(), data);
  };
  const bool transposed = kind == Kind::kTransposed;
  put(transposed ? DNNL_ARG_DST : kind == Kind::kInput ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC,
      primitive.map, map);
  put(transposed ? DNNL_ARG_SRC : kind == Kind::kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST,
      primitive.result, result);
  arguments[kind == Kind::kKernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS] = wanted;
  if (bias != nullptr) {
    const int64_t features = (transposed ? primitive.map : primitive.result).get_dims()[1];
    put(kind == Kind::kKernel ? DNNL_ARG_DIFF_BIAS : DNNL_ARG_BIAS,
        {{features}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::a}, bias);
  }
  if (primitive.interleaved != 0) {
    Interleave(primitive, static_cast<const float*>(kernel), static_cast<uint16_t*>(ordered));
  } else if (primitive.reorders && kind != Kind::kKernel) {
    primitive.reorder.execute(stream, {{DNNL_ARG_FROM, given}, {DNNL_ARG_TO, wanted}});
  }
  primitive.compute.execute(stream, arguments);
  if (primitive.reorders && kind == Kind::kKernel) {
    primitive.reorder.execute(stream, {{DNNL_ARG_FROM, wanted}, {DNNL_ARG_TO, given}});
  }
  stream.wait();
}

void* DataOrNull(ffi::AnyBuffer buffer) {
  return buffer.element_count() == 0 ? nullptr : buffer.untyped_data();
}

ffi::Error Forward(ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer bias,
                   ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> scratch,
                   Numbers window) {
  return Run([&] {
    void* offsets = DataOrNull(bias);
    const auto primitive = Get(Kind::kForward, x.dimensions(), kernel.dimensions(),
                               y->dimensions(), x.element_type(), kernel.element_type(),
                               offsets != nullptr, window);
    Execute(*primitive, Kind::kForward, x.untyped_data(), kernel.untyped_data(), offsets,
            y->untyped_data(), *scratch);
  });
}

ffi::Error Transposed(ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer bias,
                      ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> scratch,
                      Numbers window) {
  return Run([&] {
    void* offsets = DataOrNull(bias);
    const auto primitive = Get(Kind::kTransposed, y->dimensions(), kernel.dimensions(),
                               x.dimensions(), x.element_type(), kernel.element_type(),
                               offsets != nullptr, window);
    Execute(*primitive, Kind::kTransposed, y->untyped_data(), kernel.untyped_data(), offsets,
            x.untyped_data(), *scratch);
  });
}

ffi::Error InputGradient(ffi::AnyBuffer dy, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> dx,
                         ffi::Result<ffi::AnyBuffer> scratch, Numbers window) {
  return Run([&] {
    const auto primitive =
        Get(Kind::kInput, dx->dimensions(), kernel.dimensions(), dy.dimensions(),
            dy.element_type(), kernel.element_type(), false, window);
    Execute(*primitive, Kind::kInput, dx->untyped_data(), kernel.untyped_data(), nullptr,
            dy.untyped_data(), *scratch);
  });
}

ffi::Error KernelGradient(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::Result<ffi::AnyBuffer> dk,
                          ffi::Result<ffi::AnyBuffer> db, ffi::Result<ffi::AnyBuffer> scratch,
                          Numbers window) {
  return Run([&] {
    void* offsets = DataOrNull(*db);
    const auto primitive = Get(Kind::kKernel, x.dimensions(), dk->dimensions(), dy.dimensions(),
                               x.element_type(), dk->element_type(), offsets != nullptr, window);
    Execute(*primitive, Kind::kKernel, x.untyped_data(), dk->untyped_data(), offsets,
            dy.untyped_data(), *scratch);
  });
}

// dy where y > 0, and 0 elsewhere.
ffi::Error ReluGradient(ffi::AnyBuffer y, ffi::AnyBuffer dy, ffi::Result<ffi::AnyBuffer> dz) {
  return Run([&] {
    const auto count = static_cast<int64_t>(y.element_count());
    ByType(y.element_type(), [&](auto type) {
      using T = decltype(type);
      using Bits = typename AsBits<T>::type;
      const T* value = Data<T>(y);
      const Bits* in = Data<Bits>(dy);
      Bits* out = Data<Bits>(*dz);
#pragma omp parallel for simd
      for (int64_t i = 0; i < count; ++i) {
        const Bits bits = in[i];
        out[i] = Load(value[i]) > 0.f ? bits : Bits{0};
      }
    });
  });
}

// ---------------------------------------------------------------------------- batch normalization

constexpr int64_t kBlock = 256;  // pixels whose sums are taken together, in the cache

// Mean and variance of each channel over all pixels: of each block of pixels the mean and the sum
// of squares around it, merged pairwise (Chan, Golub, LeVeque 1979).
template <class T>
void Moments(const T* x, int64_t pixels, int64_t channels, float* mean, float* variance) {
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> means(threads), squares(threads);
  std::vector<int64_t> counts(threads, 0);
  const int64_t blocks = (pixels + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    std::vector<float> m(channels, 0.f), s(channels, 0.f), bm(channels), bs(channels);
    int64_t count = 0;
    const int team = omp_get_num_threads();  // may be fewer than requested
    const int64_t first = blocks * thread / team, last = blocks * (thread + 1) / team;
    for (int64_t block = first; block < last; ++block) {
      const int64_t start = block * kBlock, end = std::min(pixels, start + kBlock);
      std::fill(bm.begin(), bm.end(), 0.f);
      std::fill(bs.begin(), bs.end(), 0.f);
      float* __restrict block_mean = bm.data();
      float* __restrict block_squares = bs.data();
      for (int64_t i = start; i < end; ++i) {
        const T* row = x + i * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) block_mean[c] += Load(row[c]);
      }
      const float n = static_cast<float>(end - start);
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) block_mean[c] /= n;
      for (int64_t i = start; i < end; ++i) {
        const T* row = x + i * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          const float d = Load(row[c]) - block_mean[c];
          block_squares[c] += d * d;
        }
      }
      const float before = static_cast<float>(count), share = n / (before + n);
      for (int64_t c = 0; c < channels; ++c) {
        const float d = block_mean[c] - m[c];
        m[c] += d * share;
        s[c] += block_squares[c] + d * d * before * share;
      }
      count += end - start;
    }
    means[thread] = std::move(m);
    squares[thread] = std::move(s);
    counts[thread] = count;
  }
  for (int64_t c = 0; c < channels; ++c) {
    double m = 0, s = 0, count = 0;
    for (int t = 0; t < threads; ++t) {
      if (counts[t] == 0) continue;
      const double n = static_cast<double>(counts[t]), d = means[t][c] - m;
      m += d * n / (count + n);
      s += squares[t][c] + d * d * count * n / (count + n);
      count += n;
    }
    mean[c] = static_cast<float>(m);
    variance[c] = static_cast<float>(s / count);
  }
}

ffi::Error BatchMoments(ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> mean,
                        ffi::Result<ffi::AnyBuffer> variance) {
  return Run([&] {
    const int64_t channels = x.dimensions().back();
    ByType(x.element_type(), [&](auto type) {
      using T = decltype(type);
      Moments(Data<T>(x), static_cast<int64_t>(x.element_count()) / channels, channels,
              Data<float>(*mean), Data<float>(*variance));
    });
  });
}

// y = (x - mean) a + b by channel, optionally with a ReLU.
ffi::Error Affine(ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer a, ffi::AnyBuffer b,
                  ffi::Result<ffi::AnyBuffer> y, bool relu) {
  return Run([&] {
    const int64_t channels = x.dimensions().back();
    const int64_t pixels = static_cast<int64_t>(x.element_count()) / channels;
    const float* __restrict factor = Data<float>(a);
    const float* __restrict offset = Data<float>(b);
    const float* __restrict center = Data<float>(mean);
    ByType(x.element_type(), [&](auto type) {
      using T = decltype(type);
      const T* from = Data<T>(x);
      T* to = Data<T>(*y);
#pragma omp parallel for
      for (int64_t i = 0; i < pixels; ++i) {
        const T* __restrict in = from + i * channels;
        T* __restrict out = to + i * channels;
        if (relu) {
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            const float value = std::fma(Load(in[c]) - center[c], factor[c], offset[c]);
            Store(value < 0.f ? 0.f : value, &out[c]);
          }
        } else {
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) {
            Store(std::fma(Load(in[c]) - center[c], factor[c], offset[c]), &out[c]);
          }
        }
      }
    });
  });
}

// The sums over all pixels of dz and of dz (x - mean), dz being dy where y of `Affine` is above
// zero, or all of dy.
ffi::Error AffineSums(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::AnyBuffer mean, ffi::AnyBuffer a,
                      ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> plain,
                      ffi::Result<ffi::AnyBuffer> centered, bool relu) {
  return Run([&] {
    const int64_t channels = x.dimensions().back();
    const int64_t pixels = static_cast<int64_t>(x.element_count()) / channels;
    const float* __restrict factor = Data<float>(a);
    const float* __restrict offset = Data<float>(b);
    const float* __restrict center = Data<float>(mean);
    const int threads = omp_get_max_threads();
    std::vector<std::vector<double>> first(threads), second(threads);
    const int64_t blocks = (pixels + kBlock - 1) / kBlock;
    ByType(x.element_type(), [&](auto type) {
      using T = decltype(type);
      const T* xs = Data<T>(x);
      const T* dys = Data<T>(dy);
#pragma omp parallel num_threads(threads)
      {
        const int thread = omp_get_thread_num();
        std::vector<double> sum(channels, 0.), sum_x(channels, 0.);
        std::vector<float> block_sum(channels), block_sum_x(channels);
        float* __restrict s = block_sum.data();
        float* __restrict sx = block_sum_x.data();
        const int team = omp_get_num_threads();
        for (int64_t block = blocks * thread / team; block < blocks * (thread + 1) / team; ++block) {
          std::fill(block_sum.begin(), block_sum.end(), 0.f);
          std::fill(block_sum_x.begin(), block_sum_x.end(), 0.f);
          const int64_t end = std::min(pixels, (block + 1) * kBlock);
          for (int64_t i = block * kBlock; i < end; ++i) {
            const T* row = xs + i * channels;
            const T* gradient = dys + i * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
              const float value = Load(row[c]) - center[c];
              const bool open = !relu || std::fma(value, factor[c], offset[c]) > 0.f;
              const float dz = open ? Load(gradient[c]) : 0.f;
              s[c] += dz;
              sx[c] += dz * value;
            }
          }
          for (int64_t c = 0; c < channels; ++c) {
            sum[c] += s[c];
            sum_x[c] += sx[c];
          }
        }
        first[thread] = std::move(sum);
        second[thread] = std::move(sum_x);
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      double s = 0, sx = 0;
      for (int t = 0; t < threads; ++t) {
        if (first[t].empty()) continue;
        s += first[t][c];
        sx += second[t][c];
      }
      Data<float>(*plain)[c] = static_cast<float>(s);
      Data<float>(*centered)[c] = static_cast<float>(sx);
    }
  });
}

// dx = a dz + p (x - mean) + q by channel, dz as above.
ffi::Error AffineGradient(ffi::AnyBuffer x, ffi::AnyBuffer dy, ffi::AnyBuffer mean,
                          ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer p, ffi::AnyBuffer q,
                          ffi::Result<ffi::AnyBuffer> dx, bool relu) {
  return Run([&] {
    const int64_t channels = x.dimensions().back();
    const int64_t pixels = static_cast<int64_t>(x.element_count()) / channels;
    const float* __restrict factor = Data<float>(a);
    const float* __restrict offset = Data<float>(b);
    const float* __restrict center = Data<float>(mean);
    const float* __restrict slope = Data<float>(p);
    const float* __restrict constant = Data<float>(q);
    ByType(x.element_type(), [&](auto type) {
      using T = decltype(type);
      const T* xs = Data<T>(x);
      const T* dys = Data<T>(dy);
      T* dxs = Data<T>(*dx);
#pragma omp parallel for
      for (int64_t i = 0; i < pixels; ++i) {
        const T* row = xs + i * channels;
        const T* gradient = dys + i * channels;
        T* out = dxs + i * channels;  // may be the memory of dy
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          const float value = Load(row[c]) - center[c];
          const bool open = !relu || std::fma(value, factor[c], offset[c]) > 0.f;
          const float dz = open ? Load(gradient[c]) : 0.f;
          Store(factor[c] * dz + slope[c] * value + constant[c], &out[c]);
        }
      }
    });
  });
}

// ---------------------------------------------------------------------------- pooling

// numbers: window, stride, rows and columns before the first pixel.
struct Pool {
  int64_t window, stride, top, left;
  explicit Pool(Numbers numbers)
      : window(numbers[0]), stride(numbers[1]), top(numbers[2]), left(numbers[3]) {}
};

// The first maximum of each window (NaN is the greatest) and its place in the window.
ffi::Error MaxPool(ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> indices, Numbers numbers) {
  return Run([&] {
    const Pool pool(numbers);
    const auto in = x.dimensions(), out = y->dimensions();
    const int64_t height = in[1], width = in[2], channels = in[3];
    ByType(x.element_type(), [&](auto type) {
      using T = decltype(type);
      const T* from = Data<T>(x);
      T* to = Data<T>(*y);
      uint8_t* places = Data<uint8_t>(*indices);
#pragma omp parallel
      {
        std::vector<float> kept(channels);
        float* __restrict best = kept.data();
#pragma omp for collapse(2)
        for (int64_t image = 0; image < out[0]; ++image) {
          for (int64_t row = 0; row < out[1]; ++row) {
            for (int64_t column = 0; column < out[2]; ++column) {
              const int64_t place = ((image * out[1] + row) * out[2] + column) * channels;
              uint8_t* __restrict index = places + place;
              bool begun = false;
              for (int64_t i = 0; i < pool.window; ++i) {
                const int64_t h = row * pool.stride + i - pool.top;
                if (h < 0 || h >= height) continue;
                for (int64_t j = 0; j < pool.window; ++j) {
                  const int64_t w = column * pool.stride + j - pool.left;
                  if (w < 0 || w >= width) continue;
                  const T* pixel = from + ((image * height + h) * width + w) * channels;
                  const auto position = static_cast<uint8_t>(i * pool.window + j);
                  if (!begun) {
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c) {
                      best[c] = Load(pixel[c]);
                      index[c] = position;
                    }
                    begun = true;
                  } else {
#pragma omp simd
                    for (int64_t c = 0; c < channels; ++c) {
                      const float value = Load(pixel[c]), former = best[c];
                      const bool greater =
                          (value > former) | ((value != value) & (former == former));
                      best[c] = greater ? value : former;
                      index[c] = greater ? position : index[c];
                    }
                  }
                }
              }
              for (int64_t c = 0; c < channels; ++c) Store(best[c], &to[place + c]);
            }
          }
        }
      }
    });
  });
}

// Put each value at the indexed place of its window; values of overlapping windows are added.
ffi::Error Spread(ffi::AnyBuffer y, ffi::AnyBuffer indices, ffi::Result<ffi::AnyBuffer> x,
                  Numbers numbers) {
  return Run([&] {
    const Pool pool(numbers);
    const auto in = y.dimensions(), out = x->dimensions();
    const int64_t channels = in[3];
    ByType(y.element_type(), [&](auto type) {
      using T = decltype(type);
      const T* from = Data<T>(y);
      T* to = Data<T>(*x);
      const uint8_t* places = Data<uint8_t>(indices);
#pragma omp parallel
      {
        std::vector<float> sums(channels);
        float* __restrict sum = sums.data();
#pragma omp for collapse(2)
        for (int64_t image = 0; image < out[0]; ++image) {
          for (int64_t h = 0; h < out[1]; ++h) {
            for (int64_t w = 0; w < out[2]; ++w) {
              std::fill(sums.begin(), sums.end(), 0.f);
              // The windows that see this pixel.
              const int64_t below = h + pool.top, right = w + pool.left;
              const int64_t last_row = std::min(below / pool.stride, in[1] - 1);
              const int64_t last_column = std::min(right / pool.stride, in[2] - 1);
              for (int64_t row = std::max<int64_t>(
                       0, (below - pool.window + pool.stride) / pool.stride);
                   row <= last_row; ++row) {
                for (int64_t column = std::max<int64_t>(
                         0, (right - pool.window + pool.stride) / pool.stride);
                     column <= last_column; ++column) {
                  const auto position = static_cast<uint8_t>(
                      (below - row * pool.stride) * pool.window + right - column * pool.stride);
                  const int64_t place = ((image * in[1] + row) * in[2] + column) * channels;
#pragma omp simd
                  for (int64_t c = 0; c < channels; ++c) {
                    sum[c] += places[place + c] == position ? Load(from[place + c]) : 0.f;
                  }
                }
              }
              T* pixel = to + ((image * out[1] + h) * out[2] + w) * channels;
              for (int64_t c = 0; c < channels; ++c) Store(sum[c], &pixel[c]);
            }
          }
        }
      }
    });
  });
}

// Take the value at the indexed place of each window.
ffi::Error Gather(ffi::AnyBuffer x, ffi::AnyBuffer indices, ffi::Result<ffi::AnyBuffer> y,
                  Numbers numbers) {
  return Run([&] {
    const Pool pool(numbers);
    const auto in = x.dimensions(), out = y->dimensions();
    const int64_t height = in[1], width = in[2], channels = in[3];
    ByType(x.element_type(), [&](auto type) {
      using T = typename AsBits<decltype(type)>::type;
      const T* from = Data<T>(x);
      T* to = Data<T>(*y);
      const uint8_t* places = Data<uint8_t>(indices);
#pragma omp parallel for collapse(2)
      for (int64_t image = 0; image < out[0]; ++image) {
        for (int64_t row = 0; row < out[1]; ++row) {
          for (int64_t column = 0; column < out[2]; ++column) {
            const int64_t place = ((image * out[1] + row) * out[2] + column) * channels;
            const uint8_t* __restrict index = places + place;
            T* __restrict result = to + place;
            std::memset(result, 0, sizeof(T) * channels);
            for (int64_t i = 0; i < pool.window; ++i) {
              const int64_t h = row * pool.stride + i - pool.top;
              if (h < 0 || h >= height) continue;
              for (int64_t j = 0; j < pool.window; ++j) {
                const int64_t w = column * pool.stride + j - pool.left;
                if (w < 0 || w >= width) continue;
                const T* __restrict pixel = from + ((image * height + h) * width + w) * channels;
                const auto position = static_cast<uint8_t>(i * pool.window + j);
#pragma omp simd
                for (int64_t c = 0; c < channels; ++c) {
                  const T value = pixel[c], former = result[c];
                  result[c] = index[c] == position ? value : former;
                }
              }
            }
          }
        }
      }
    });
  });
}

}  // namespace

using Any = ffi::AnyBuffer;
#define WINDOW Attr<Numbers>("window")
#define RELU Attr<bool>("relu")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution, Forward, ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>().Ret<Any>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    transposed_convolution, Transposed,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>().Ret<Any>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_input_gradient, InputGradient,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>().Ret<Any>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution_kernel_gradient, KernelGradient,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>().Ret<Any>().Ret<Any>().WINDOW);

// Return the bytes of scratch memory of a call of a `Kind`, or -1 if oneDNN has no such convolution.
// Called while a program is traced.
extern "C" int64_t scratch_bytes(int64_t kind, const int64_t* map, const int64_t* kernel,
                                 const int64_t* result, bool bfloat16, bool bfloat16_kernel,
                                 bool bias, const int64_t* window) {
  const auto type_of = [](bool half) { return half ? ffi::DataType::BF16 : ffi::DataType::F32; };
  std::lock_guard<std::mutex> lock(running);
  try {
    const auto primitive =
        Get(static_cast<Kind>(kind), Numbers(map, 4), Numbers(kernel, 4), Numbers(result, 4),
            type_of(bfloat16), type_of(bfloat16_kernel), bias, Numbers(window, 11));
    // A plain loop, hundreds of times slower than XLA.
    if (primitive->name.rfind("ref", 0) == 0) return -1;
    return static_cast<int64_t>(Scratch(*primitive).end);
  } catch (const dnnl::error&) {
    return -1;
  }
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(relu_gradient, ReluGradient,
                              ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(moments, BatchMoments,
                              ffi::Ffi::Bind().Arg<Any>().Ret<Any>().Ret<Any>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    affine, Affine, ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>().RELU);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    affine_sums, AffineSums,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Ret<Any>().Ret<Any>()
        .RELU);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    affine_gradient, AffineGradient,
    ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>().Arg<Any>()
        .Ret<Any>().RELU);
XLA_FFI_DEFINE_HANDLER_SYMBOL(max_pool, MaxPool,
                              ffi::Ffi::Bind().Arg<Any>().Ret<Any>().Ret<Any>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(spread, Spread,
                              ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>().WINDOW);
XLA_FFI_DEFINE_HANDLER_SYMBOL(gather, Gather,
                              ffi::Ffi::Bind().Arg<Any>().Arg<Any>().Ret<Any>().WINDOW);
