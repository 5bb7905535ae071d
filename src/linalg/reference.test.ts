import { testBackend } from './conformance.ts';
import { openReferenceBackend } from './reference.ts';

testBackend('reference', openReferenceBackend);
