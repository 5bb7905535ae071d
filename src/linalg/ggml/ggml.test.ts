import { testBackend } from '../conformance.ts';
import { openGgmlBackend } from './backend.ts';

testBackend('ggml', openGgmlBackend);
