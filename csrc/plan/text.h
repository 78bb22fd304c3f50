// Numbers as JSON has them, whatever the locale.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>

namespace groupwise {

inline std::string json_number(double value, int digits) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, digits).ptr;
  return std::string(text, end);
}

// Returns a factor as `1.25x`, without decimals from 10 on.
inline std::string times(double factor) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, factor, std::chars_format::fixed, factor < 10 ? 2 : 0).ptr;
  return std::string(text, end) + "x";
}

}  // namespace groupwise
