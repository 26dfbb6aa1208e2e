// What an operator throws for an input that it can't work with.
#pragma once

#include <stdexcept>

namespace hat_operators {

// What is wrong with an input, in one line.
class InputError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace hat_operators
