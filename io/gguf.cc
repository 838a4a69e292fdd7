#include "io/gguf.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "io/bytes.h"

namespace permafrost {
namespace {

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
constexpr std::string_view kTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
constexpr size_t kTypeBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr size_t kNumTypes = std::size(kTypeBytes);

constexpr uint64_t kMaxLength = uint64_t{1} << 30;  // of a string or array, as in the reference
constexpr size_t kMaxTensorName = 63;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr char kAlignmentKey[] = "general.alignment";
// The smallest key-value pair: an empty string's length, type, one byte. The smallest tensor info:
// name length, number of dimensions, type, offset.
constexpr uint64_t kMinPairBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;

std::string Printable(std::string_view text) {
  return absl::Utf8SafeCHexEscape(std::string(text.substr(0, 200)));
}

// The numeric value at `bytes`, or nothing if the type is not of the wanted kind.
std::optional<int64_t> DecodeInt(uint32_t type, const std::byte* bytes) {
  switch (type) {
    case kU8:
      return LoadLittleEndian<uint8_t>(bytes);
    case kI8:
      return LoadLittleEndian<int8_t>(bytes);
    case kU16:
      return LoadLittleEndian<uint16_t>(bytes);
    case kI16:
      return LoadLittleEndian<int16_t>(bytes);
    case kU32:
      return LoadLittleEndian<uint32_t>(bytes);
    case kI32:
      return LoadLittleEndian<int32_t>(bytes);
    case kI64:
      return LoadLittleEndian<int64_t>(bytes);
    case kU64: {
      const uint64_t value = LoadLittleEndian<uint64_t>(bytes);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

// How a value of T is decoded, and what messages call it.
template <typename T>
struct Decoder;

template <>
struct Decoder<int64_t> {
  static constexpr std::string_view kExpected = "integer that fits i64";
  static std::optional<int64_t> Decode(uint32_t type, const std::byte* bytes) {
    return DecodeInt(type, bytes);
  }
};

template <>
struct Decoder<double> {
  static constexpr std::string_view kExpected = "f32 or f64";
  static std::optional<double> Decode(uint32_t type, const std::byte* bytes) {
    if (type == kF32) return LoadLittleEndian<float>(bytes);
    if (type == kF64) return LoadLittleEndian<double>(bytes);
    return std::nullopt;
  }
};

template <>
struct Decoder<bool> {
  static constexpr std::string_view kExpected = "bool";
  static std::optional<bool> Decode(uint32_t type, const std::byte* bytes) {
    if (type != kBool) return std::nullopt;
    return bytes[0] != std::byte{0};
  }
};

template <>
struct Decoder<std::string> {
  static constexpr std::string_view kExpected = "string";
  static std::optional<std::string> Decode(uint32_t type, const std::byte* bytes) {
    if (type != kString) return std::nullopt;
    return std::string(reinterpret_cast<const char*>(bytes) + 8, LoadLittleEndian<uint64_t>(bytes));
  }
};

// Bytes that one (already checked) element takes.
size_t ElementBytes(uint32_t type, const std::byte* bytes) {
  return type == kString ? 8 + LoadLittleEndian<uint64_t>(bytes) : kTypeBytes[type];
}

}  // namespace

// Walks over the file. Every step checks what is left before it reads.
class GgufParser {
 public:
  GgufParser(absl::Span<const std::byte> bytes, std::string source) : bytes_(bytes) {
    file_.source_ = std::move(source);
  }

  absl::StatusOr<GgufFile> Parse() {
    if (absl::Status s = ReadHeader(); !s.ok()) return s;
    for (uint64_t i = 0; i < num_pairs_; ++i) {
      if (absl::Status s = ReadPair(); !s.ok()) return s;
    }
    std::sort(file_.entries_.begin(), file_.entries_.end(),
              [](const GgufFile::Entry& a, const GgufFile::Entry& b) { return a.key < b.key; });
    if (absl::Status s = ReadAlignment(); !s.ok()) return s;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      if (absl::Status s = ReadTensorInfo(); !s.ok()) return s;
    }
    if (absl::Status s = PlaceTensors(); !s.ok()) return s;
    std::sort(file_.tensors_.begin(), file_.tensors_.end(),
              [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; });
    return std::move(file_);
  }

 private:
  size_t left() const { return bytes_.size() - at_; }

  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.source_, ": byte ", at_, ": ", std::string(message)));
  }

  template <typename T>
  absl::Status Read(T* value, std::string_view what) {
    if (left() < sizeof(T)) return Error(absl::StrCat("file ends inside of ", std::string(what)));
    *value = LoadLittleEndian<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return absl::OkStatus();
  }

  absl::Status ReadString(std::string_view* text, std::string_view what) {
    uint64_t length = 0;
    if (absl::Status s = Read(&length, what); !s.ok()) return s;
    if (length > kMaxLength || length > left()) {
      return Error(
          absl::StrCat(std::string(what), " claims ", length, " bytes, ", left(), " are left"));
    }
    *text = {reinterpret_cast<const char*>(bytes_.data()) + at_, length};
    at_ += length;
    return absl::OkStatus();
  }

  absl::Status ReadHeader() {
    constexpr std::string_view kMagic = "GGUF";
    if (bytes_.size() < 24 || std::memcmp(bytes_.data(), kMagic.data(), kMagic.size()) != 0) {
      return Error("not a GGUF file: it does not begin with 'GGUF' and a header of 24 bytes");
    }
    at_ = kMagic.size();
    int64_t tensors = 0, pairs = 0;
    if (absl::Status s = Read(&file_.version_, "the version"); !s.ok()) return s;
    if ((file_.version_ & 0xffffu) == 0) return Error("big-endian GGUF files are not supported");
    if (file_.version_ != 2 && file_.version_ != 3) {
      return Error(absl::StrCat("GGUF version: expected 2 or 3, found ", file_.version_));
    }
    if (absl::Status s = Read(&tensors, "the header"); !s.ok()) return s;
    if (absl::Status s = Read(&pairs, "the header"); !s.ok()) return s;
    num_tensors_ = static_cast<uint64_t>(tensors);
    num_pairs_ = static_cast<uint64_t>(pairs);
    if (tensors < 0 || num_tensors_ > left() / kMinTensorBytes) {
      return Error(
          absl::StrCat("header claims ", tensors, " tensors, ", left(), " bytes are left"));
    }
    if (pairs < 0 || num_pairs_ > left() / kMinPairBytes) {
      return Error(absl::StrCat("header claims ", pairs, " keys, ", left(), " bytes are left"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadPair() {
    GgufFile::Entry entry;
    std::string_view key;
    if (absl::Status s = ReadString(&key, "a key"); !s.ok()) return s;
    if (key.empty()) return Error("empty key");
    entry.key = key;
    if (!keys_.insert(entry.key).second) {
      return Error(absl::StrCat("duplicate key '", Printable(key), "'"));
    }
    const std::string what = absl::StrCat("key '", Printable(key), "'");
    if (absl::Status s = Read(&entry.type, what); !s.ok()) return s;
    if (entry.type == kArray) {
      entry.is_array = true;
      if (absl::Status s = Read(&entry.type, what); !s.ok()) return s;
      if (absl::Status s = Read(&entry.count, what); !s.ok()) return s;
      if (entry.type == kArray) return Error(absl::StrCat(what, ": nested arrays are not allowed"));
    }
    if (entry.type >= kNumTypes) {
      return Error(absl::StrCat(what, ": unknown value type ", entry.type));
    }
    // The smallest string is its length alone.
    const uint64_t least = entry.type == kString ? 8 : kTypeBytes[entry.type];
    if (entry.count > kMaxLength || entry.count > left() / least) {
      return Error(
          absl::StrCat(what, ": claims ", entry.count, " values, ", left(), " bytes are left"));
    }
    const size_t begin = at_;
    if (entry.type == kString) {
      std::string_view text;
      for (uint64_t i = 0; i < entry.count; ++i) {
        if (absl::Status s = ReadString(&text, what); !s.ok()) return s;
      }
    } else {
      at_ += entry.count * least;
    }
    entry.bytes = bytes_.subspan(begin, at_ - begin);
    file_.entries_.push_back(std::move(entry));
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    const GgufFile::Entry* entry = file_.FindEntry(kAlignmentKey);
    if (entry == nullptr) return absl::OkStatus();
    if (entry->is_array || entry->type != kU32) {
      return file_.TypeError(kAlignmentKey, "u32");
    }
    alignment_ = LoadLittleEndian<uint32_t>(entry->bytes.data());
    if (!std::has_single_bit(alignment_)) {
      return Error(absl::StrCat(kAlignmentKey, ": expected a power of two, found ", alignment_));
    }
    return absl::OkStatus();
  }

  absl::Status ReadTensorInfo() {
    GgufTensor tensor;
    std::string_view name;
    if (absl::Status s = ReadString(&name, "a tensor's name"); !s.ok()) return s;
    if (name.empty() || name.size() > kMaxTensorName || HasControlCharacter(name)) {
      return Error(absl::StrCat("tensor name '", Printable(name), "': expected 1 to ",
                                kMaxTensorName, " printable bytes"));
    }
    tensor.name = name;
    if (!names_.insert(tensor.name).second) {
      return Error(absl::StrCat("duplicate tensor '", Printable(name), "'"));
    }
    const std::string what = absl::StrCat("tensor '", Printable(name), "'");
    uint32_t dimensions = 0, type = 0;
    uint64_t offset = 0;
    if (absl::Status s = Read(&dimensions, what); !s.ok()) return s;
    if (dimensions > kMaxDimensions) {
      return Error(absl::StrCat(what, ": ", dimensions, " dimensions, at most ", kMaxDimensions));
    }
    tensor.shape.resize(dimensions);
    for (uint32_t i = dimensions; i > 0; --i) {
      if (absl::Status s = Read(&tensor.shape[i - 1], what); !s.ok()) return s;
    }
    if (absl::Status s = Read(&type, what); !s.ok()) return s;
    if (absl::Status s = Read(&offset, what); !s.ok()) return s;
    tensor.type = FindGgmlType(type);
    if (tensor.type == nullptr) return Error(absl::StrCat(what, ": unknown type ", type));
    const int64_t block = tensor.type->block_elements;
    const std::optional<int64_t> count = ElementCount(tensor.shape);
    const int64_t inner = dimensions == 0 ? 1 : tensor.shape.back();
    if (!count.has_value()) {
      return Error(absl::StrCat(what, ": shape ", ShapeText(tensor.shape), " is out of range"));
    }
    if (inner % block != 0) {
      return Error(absl::StrCat(what, ": rows of ", inner, " elements, expected a multiple of ",
                                block, " for type ", std::string(tensor.type->name)));
    }
    const std::optional<int64_t> size = CheckedMultiply(*count / block, tensor.type->block_bytes);
    if (!size.has_value()) {
      return Error(absl::StrCat(what, ": shape ", ShapeText(tensor.shape), " is out of range"));
    }
    places_.push_back({offset, static_cast<uint64_t>(*size)});
    file_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // x rounded up to the alignment; callers keep x far below 2^64.
  uint64_t Pad(uint64_t x) const { return (x + alignment_ - 1) & ~(alignment_ - 1); }

  // Tensors must follow each other in order without holes, each padded to the alignment.
  absl::Status PlaceTensors() {
    if (file_.tensors_.empty()) return absl::OkStatus();
    const uint64_t data_begin = Pad(at_);
    if (data_begin > bytes_.size()) return Error("file ends before the tensor data");
    const absl::Span<const std::byte> data = bytes_.subspan(data_begin);
    uint64_t expected = 0;
    for (size_t i = 0; i < places_.size(); ++i) {
      const std::string what = absl::StrCat("tensor '", Printable(file_.tensors_[i].name), "'");
      const auto [offset, size] = places_[i];
      if (offset != expected) {
        return Error(absl::StrCat(what, ": offset ", offset, ", expected ", expected));
      }
      if (offset > data.size() || size > data.size() - offset) {
        return Error(absl::StrCat(what, ": ends at byte ", offset, " + ", size, " of the data, ",
                                  data.size(), " are there; is the file cut off?"));
      }
      file_.tensors_[i].bytes = data.subspan(offset, size);
      expected = Pad(offset + size);
    }
    return absl::OkStatus();
  }

  struct Place {
    uint64_t offset;
    uint64_t size;
  };

  absl::Span<const std::byte> bytes_;
  size_t at_ = 0;
  GgufFile file_;
  uint64_t num_tensors_ = 0;
  uint64_t num_pairs_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  absl::flat_hash_set<std::string> keys_;
  absl::flat_hash_set<std::string> names_;
  std::vector<Place> places_;  // of file_.tensors_, in file order
};

int64_t GgufTensor::num_elements() const { return ElementCount(shape).value_or(0); }

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  absl::StatusOr<MappedFile> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  absl::StatusOr<GgufFile> file = Parse(mapped->bytes(), path);
  if (file.ok()) file->file_ = *std::move(mapped);
  return file;
}

absl::StatusOr<GgufFile> GgufFile::Parse(absl::Span<const std::byte> bytes, std::string source) {
  return GgufParser(bytes, std::move(source)).Parse();
}

const GgufTensor* GgufFile::Find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const GgufTensor& t, std::string_view n) { return t.name < n; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const GgufFile::Entry* GgufFile::FindEntry(std::string_view key) const {
  const auto found = std::lower_bound(entries_.begin(), entries_.end(), key,
                                      [](const Entry& e, std::string_view k) { return e.key < k; });
  return found != entries_.end() && found->key == key ? &*found : nullptr;
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> keys;
  for (const Entry& entry : entries_) keys.push_back(entry.key);
  return keys;
}

absl::Status GgufFile::TypeError(std::string_view key, std::string_view expected) const {
  const Entry* entry = FindEntry(key);
  std::string found = "no such key";
  if (entry != nullptr) {
    found = std::string(kTypeNames[entry->type]);
    if (entry->is_array) found = absl::StrCat("array of ", entry->count, " ", found);
  }
  return absl::InvalidArgumentError(absl::StrCat(source_, ": key '", Printable(key), "': expected ",
                                                 std::string(expected), ", found ", found));
}

template <typename T>
absl::StatusOr<T> GgufFile::Get(std::string_view key) const {
  const Entry* entry = FindEntry(key);
  if (entry != nullptr && !entry->is_array) {
    std::optional<T> value = Decoder<T>::Decode(entry->type, entry->bytes.data());
    if (value.has_value()) return *std::move(value);
  }
  return TypeError(key, Decoder<T>::kExpected);
}

template <typename T>
absl::StatusOr<std::vector<T>> GgufFile::GetArray(std::string_view key) const {
  const std::string expected = absl::StrCat("array of ", std::string(Decoder<T>::kExpected));
  const Entry* entry = FindEntry(key);
  if (entry == nullptr || !entry->is_array) return TypeError(key, expected);
  std::vector<T> values;
  const std::byte* at = entry->bytes.data();
  for (uint64_t i = 0; i < entry->count; ++i) {
    std::optional<T> value = Decoder<T>::Decode(entry->type, at);
    if (!value.has_value()) return TypeError(key, expected);
    values.push_back(*std::move(value));
    at += ElementBytes(entry->type, at);
  }
  return values;
}

template <typename T>
absl::StatusOr<T> GgufFile::GetOr(std::string_view key, T fallback) const {
  if (!Has(key)) return fallback;
  return Get<T>(key);
}

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key) const { return Get<int64_t>(key); }
absl::StatusOr<int64_t> GgufFile::IntOr(std::string_view key, int64_t fallback) const {
  return GetOr<int64_t>(key, fallback);
}
absl::StatusOr<double> GgufFile::Float(std::string_view key) const { return Get<double>(key); }
absl::StatusOr<double> GgufFile::FloatOr(std::string_view key, double fallback) const {
  return GetOr<double>(key, fallback);
}
absl::StatusOr<bool> GgufFile::Bool(std::string_view key) const { return Get<bool>(key); }
absl::StatusOr<bool> GgufFile::BoolOr(std::string_view key, bool fallback) const {
  return GetOr<bool>(key, fallback);
}
absl::StatusOr<std::string> GgufFile::String(std::string_view key) const {
  return Get<std::string>(key);
}
absl::StatusOr<std::string> GgufFile::StringOr(std::string_view key, std::string fallback) const {
  return GetOr<std::string>(key, std::move(fallback));
}
absl::StatusOr<std::vector<int64_t>> GgufFile::IntArray(std::string_view key) const {
  return GetArray<int64_t>(key);
}
absl::StatusOr<std::vector<double>> GgufFile::FloatArray(std::string_view key) const {
  return GetArray<double>(key);
}
absl::StatusOr<std::vector<std::string>> GgufFile::StringArray(std::string_view key) const {
  return GetArray<std::string>(key);
}

absl::Status ReadAsF32(const GgufTensor& tensor, int64_t first_element, absl::Span<float> out) {
  const int64_t count = tensor.num_elements();
  const int64_t wanted = static_cast<int64_t>(out.size());
  const int64_t block = tensor.type->block_elements;
  if (first_element < 0 || first_element > count || wanted > count - first_element ||
      first_element % block != 0 || wanted % block != 0) {
    return absl::OutOfRangeError(absl::StrCat(
        "tensor '", tensor.name, "': elements ", first_element, " to ", first_element, " + ",
        wanted, ": outside of its ", count, " or not in whole blocks of ", block));
  }
  if (tensor.type->dequantize == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("tensor '", tensor.name, "': type ", std::string(tensor.type->name),
                     " is not supported; use F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
                     "Q5_K or Q6_K"));
  }
  if (out.empty()) return absl::OkStatus();
  tensor.type->dequantize(tensor.bytes.data() + first_element / block * tensor.type->block_bytes,
                          wanted / block, out.data());
  return absl::OkStatus();
}

}  // namespace permafrost
