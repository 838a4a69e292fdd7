#include "config_entries.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/check.h"
#include "io/json.h"

namespace permafrost {
namespace {

// The words that stand for one entry.
absl::Status AppendEntry(const std::string& where, const CLI::Option& option,
                         const nlohmann::json& value, std::vector<std::string>& arguments) {
  const std::string flag = "--" + option.get_lnames()[0];
  const bool is_switch = option.get_expected_max() == 0;
  if (value.is_null() || value == false) return absl::OkStatus();
  // A flag that may stand without a value, such as --recompute, may be `true` too.
  if (option.get_expected_min() == 0 && value == true) {
    arguments.push_back(flag);
    return absl::OkStatus();
  }
  const nlohmann::json list = value.is_array() ? value : nlohmann::json::array({value});
  std::vector<std::string> texts;
  for (const nlohmann::json& v : list) {
    if (is_switch || !(v.is_string() || v.is_number())) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "expected ", is_switch ? "true or false" : "a string or a number",
                       ", found ", DescribeJson(value)));
    }
    texts.push_back(v.is_string() ? v.get<std::string>() : v.dump());
  }
  const bool repeats = option.get_items_expected_max() > 1;
  if (!repeats) texts = {absl::StrJoin(texts, ",")};  // --targets q_proj,v_proj
  for (const std::string& text : texts) arguments.push_back(absl::StrCat(flag, "=", text));
  return absl::OkStatus();
}

}  // namespace

bool IsGiven(const std::vector<std::string>& arguments, const std::string& flag) {
  return std::any_of(arguments.begin(), arguments.end(), [&](const std::string& a) {
    return a == flag || absl::StartsWith(a, flag + "=");
  });
}

absl::Status AppendEntries(const std::string& where, const std::string& command,
                           const CLI::App& app, const nlohmann::json& object,
                           const std::vector<std::string>& given,
                           std::vector<std::string>& arguments) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": expected an object of flags, found ", DescribeJson(object)));
  }
  for (const auto& [key, value] : object.items()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', '-');
    const CLI::Option* option = app.get_option_no_throw("--" + name);
    if (option == nullptr || name == "config") {
      return UsageError(absl::StrCat(where, ": ", key, " is no flag of", command,
                                     "; see permafrost", command, " --help"));
    }
    if (IsGiven(given, "--" + name)) continue;
    PERMAFROST_RETURN_IF_ERROR(
        AppendEntry(absl::StrCat(where, ": ", key, ": "), *option, value, arguments));
  }
  return absl::OkStatus();
}

}  // namespace permafrost
